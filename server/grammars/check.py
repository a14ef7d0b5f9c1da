"""Refuses grammars that cannot be used before their requests are accepted.

The engine compiles grammars again. Each is tried here first, once, in a process that can be killed (worker.py), so that
a hostile schema costs its sender a 400 and nobody else a step.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import socket
import subprocess
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import IO

from model.contract.errors import EngineUnavailableError, InvalidRequestError
from model.contract.grammar_compiler import ACCOUNT_S
from model.contract.tokenizer import Tokenizer
from server.engine.process import child_environment
from server.gates.callers import NOBODY, caller_var
from server.grammars.worker import STARTED, WAIT_LIMIT_S, Verdict, pack_ranks
from server.off_loop import FairPool
from server.run_module import module_command

logger = logging.getLogger(__name__)

_MAX_REMEMBERED = 4096
# Trials at a time: enough that a few hostile grammars do not keep honest ones waiting.
_NUM_THREADS = 8
# How long a request may wait for its turn and its trial together.
_PATIENCE_S = 15.0
_START_TIMEOUT_S = 60.0
# A worker that has started forks at once; one that does not was stopped, or hangs.
_FORK_TIMEOUT_S = 3.0
_BUSY = "Too many schemas are being compiled; please try again later."
TOO_COMPLEX: Verdict = ("it is too complex; simplify it", 0.0)


class GrammarChecker:
    """Tries each grammar once, and remembers the verdict."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._worker = GrammarWorker(tokenizer)
        self._pool = FairPool(_NUM_THREADS, "grammar")
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()

    def start(self) -> None:
        """Has the worker start, so that the first grammar does not wait for that; returns at once."""
        self._pool.submit(self._pool.next_turn(NOBODY), self._worker.start)

    def close(self) -> None:
        """Ends the worker."""
        self._worker.close()
        self._pool.close()

    async def check(self, grammars: Mapping[str, str], *, param: str, num_choices: int = 1) -> None:
        """Returns if the grammars can be used.

        Args:
            grammars: grammars in llguidance's Lark dialect, each with its name in error messages.
            param: the request's field that they came from.
            num_choices: choices of the request, each of which follows the grammar on its own.

        Raises:
            InvalidRequestError: one is malformed, impossible, or takes too long.
            EngineUnavailableError: too many grammars are being tried out.
        """
        verdicts = await self.verdicts([*grammars])
        for grammar, (reason, behind_s) in zip(grammars, verdicts, strict=True):
            if reason is None and behind_s * num_choices > ACCOUNT_S:
                reason = f"it takes too long to follow for {num_choices} choices; make it unambiguous, or lower 'n'"
            if reason is not None:
                raise InvalidRequestError(f"{grammars[grammar]} cannot be enforced: {reason}", param=param)

    async def verdicts(self, grammars: Sequence[str]) -> list[Verdict]:
        """Returns the verdict on each grammar; `TOO_COMPLEX` where the trial took too long.

        Raises:
            EngineUnavailableError: too many grammars are being tried out.
        """
        digests = [hashlib.sha256(grammar.encode()).digest() for grammar in grammars]
        known = {digest: self._verdicts[digest] for digest in digests if digest in self._verdicts}
        unknown = {digest: grammar for digest, grammar in zip(digests, grammars, strict=True) if digest not in known}
        if unknown:
            known |= zip(unknown, await self._try_out([*unknown.values()]), strict=True)
        for digest, verdict in known.items():
            if verdict != TOO_COMPLEX:  # the machine may only have been busy
                self._verdicts[digest] = verdict
                self._verdicts.move_to_end(digest)
        while len(self._verdicts) > _MAX_REMEMBERED:
            self._verdicts.popitem(last=False)
        return [known[digest] for digest in digests]

    async def _try_out(self, grammars: list[str]) -> list[Verdict]:
        trial = self._pool.submit(self._pool.next_turn(caller_var.get()), lambda: self._worker.judge(grammars))
        try:
            async with asyncio.timeout(_PATIENCE_S):
                verdicts = await asyncio.wrap_future(trial)
        except TimeoutError:
            raise EngineUnavailableError(_BUSY) from None
        return [TOO_COMPLEX] * len(grammars) if verdicts is None else verdicts


class GrammarWorker:
    """The process that tries grammars; started when needed, and again if it dies. Any thread may use it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._running: socket.socket | None = None  # the `_control` of a process that has answered once
        self._closed = False

    def start(self) -> None:
        """Makes sure that the process runs."""
        with self._lock:
            self._ensure_running()

    def close(self) -> None:
        """Ends the process, for good."""
        with self._lock:
            self._closed = True
            self._end()

    def judge(self, grammars: list[str]) -> list[Verdict] | None:
        """Tries grammars.

        Returns:
            The verdict on each; None instead of a list if they took too much time or memory.

        Raises:
            EngineUnavailableError: the process cannot be started.
        """
        for _ in range(2):
            ours, theirs = socket.socketpair()
            with ours:
                control = None
                with theirs, contextlib.suppress(OSError), self._lock:
                    control = self._ensure_running()
                    socket.send_fds(control, [b"T"], [theirs.fileno()])
                ours.settimeout(_FORK_TIMEOUT_S if control is self._running else _START_TIMEOUT_S)
                with contextlib.suppress(OSError):
                    if ours.recv(1) == STARTED:
                        self._running = control
                        return _ask(ours, grammars)
            with self._lock:
                if control is self._control:  # else another thread has started another process meanwhile
                    logger.warning("the process that tries schemas out does not answer; starting another one")
                    self._end()
        raise EngineUnavailableError("Schemas cannot be compiled now; please try again later.")

    def _ensure_running(self) -> socket.socket:
        if self._closed:
            raise EngineUnavailableError("The server is shutting down.")
        if self._control is not None:
            return self._control
        control, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                module_command("server.grammars.worker", "--fd", str(theirs.fileno())),
                stdin=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                env=child_environment(os.environ),
                start_new_session=True,  # Ctrl-C is for the server, which closes the socket
            )
        self._process, self._control = process, control
        logger.debug("grammar worker %d started", process.pid)
        # A worker that hangs before it reads must not hold the lock.
        threading.Thread(target=_feed, args=(process.stdin, pack_ranks(self._tokenizer)), daemon=True).start()
        return control

    def _end(self) -> None:
        process, self._process = self._process, None
        control, self._control = self._control, None
        if control is not None:
            control.close()
        if process is not None:
            process.kill()
            process.wait()


def _feed(pipe: IO[bytes], data: bytes) -> None:
    with contextlib.suppress(OSError), pipe:  # the worker was killed
        pipe.write(data)


def _ask(trial: socket.socket, grammars: list[str]) -> list[Verdict] | None:
    """Sends grammars to a child that has started, and returns its verdicts, or None where it was killed.

    Raises:
        EngineUnavailableError: the machine was too busy to run it.
    """
    started = time.monotonic()
    trial.settimeout(WAIT_LIMIT_S + 1)
    try:
        trial.sendall(json.dumps(grammars).encode())
        trial.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: trial.recv(1 << 16), b""))
    except OSError:
        answer = b""
    if not answer and time.monotonic() - started >= WAIT_LIMIT_S:
        raise EngineUnavailableError(_BUSY)
    if not answer:
        return None
    return [(reason, behind_s) for reason, behind_s in json.loads(answer)]
