"""The other ranks as their leader has them: processes that it forks, tells of each step, and watches.

They are forked once torch is imported and before anything touches a device, so a rank costs neither an interpreter's
start nor a second copy of the libraries. One that dies, fails or falls silent ends the engine: ranks that have left a
step cannot find back into it. The server starts all of them anew.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from model.contract.engine_config import EngineConfig
from model.contract.files.model_config import read_model_config
from model.contract.log_text import describe_exit
from model.contract.messages import EngineFailed, Ping
from model.contract.parallel import require_divisible
from model.distributed.group import GroupRanks
from model.distributed.ranks import OutOfStepError
from model.distributed.step import RankStep, decode_step
from model.execution.tensor_files import stored_rows
from model.loop.child_process import die_with_parent
from model.loop.connection import Connection, ConnectionClosed
from model.loop.rank_process import SIGN_OF_LIFE_S, join_group, run_rank

logger = logging.getLogger(__name__)

Report = Ping | EngineFailed

MAX_SILENCE_S = 10.0
_LAST_WORDS_S = 0.3  # for a silent rank to write down where it hangs
_EXIT_GRACE_S = 2.0


class _Follower(NamedTuple):
    rank: int
    pid: int
    connection: Connection[Report]


class RankLeader:
    """Forks the other ranks and watches them.

    Args:
        config: settings of an engine with more ranks than one.
        on_failed: called once, by a thread, with the reason why a rank cannot go on; it should end the engine.
        forget: closes in a forked process what it must not keep open.

    Attributes:
        ranks: the leader's line to the other ranks.

    Raises:
        ConfigError: the checkpoint, or what is asked for, cannot be split so.
    """

    def __init__(
        self, config: EngineConfig, on_failed: Callable[[EngineFailed], None], forget: Callable[[], None]
    ) -> None:
        num_stages = config.pipeline_parallel_size
        model_config = read_model_config(config.checkpoint_path, stored_rows)
        require_divisible(model_config, config.tensor_parallel_size, num_stages)
        self._on_failed = on_failed
        self._has_failed = threading.Event()
        self._is_serving = False
        self._followers: list[_Follower] = []
        if "lo" in (name for _, name in socket.if_nameindex()):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all ranks are on this machine
        folder = Path(tempfile.mkdtemp(prefix="qwen-server-ranks-"))
        try:
            store = folder / "store"
            for rank in range(1, config.tensor_parallel_size * num_stages):
                self._followers.append(self._fork(config, rank, store, forget))
            threading.Thread(target=self._watch, name="watch of the ranks", daemon=True).start()
            self.ranks: GroupRanks = join_group(config, 0, store, self._tell)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _fork(self, config: EngineConfig, rank: int, store: Path, forget: Callable[[], None]) -> _Follower:
        ours, theirs = socket.socketpair()
        leader = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                die_with_parent()
                forget()
                ours.close()
                for other in self._followers:  # whose ends must close when the leader's do
                    other.connection.close()
                if os.getppid() != leader:
                    os._exit(0)
                os._exit(run_rank(config, rank, Connection(theirs, decode_step), store))
            finally:
                os._exit(1)  # never back into what the leader was doing
        theirs.close()
        return _Follower(rank, pid, Connection(ours, _REPORTS.decode))

    def _tell(self, step: RankStep) -> None:
        for follower in self._followers:
            try:
                follower.connection.send(step)
            except ConnectionClosed as error:
                raise OutOfStepError(f"rank {follower.rank} is gone") from error

    def note_serving(self) -> None:
        """From now on silence counts: loading may hold a process's threads up for long."""
        self._is_serving = True

    def await_failure(self) -> None:
        """Waits a moment for what a failed exchange was the consequence of, which `on_failed` is told."""
        self._has_failed.wait(_EXIT_GRACE_S)

    def _watch(self) -> None:
        """Reads what the ranks say; returns when one has failed."""
        poller = select.poll()
        by_descriptor = {follower.connection.fileno(): follower for follower in self._followers}
        for descriptor in by_descriptor:
            poller.register(descriptor, select.POLLIN)
        silent_s = dict.fromkeys(by_descriptor, 0.0)
        while True:
            started = time.monotonic()
            spoken = {descriptor for descriptor, _ in poller.poll(SIGN_OF_LIFE_S * 1000)}
            for descriptor in spoken:
                failed = self._read(by_descriptor[descriptor])
                if failed is not None:
                    self._fail(failed)
                    return
            # Time in which this process was itself stopped does not count.
            elapsed_s = min(time.monotonic() - started, 2 * SIGN_OF_LIFE_S)
            for descriptor, follower in by_descriptor.items():
                silent_s[descriptor] = 0.0 if descriptor in spoken else silent_s[descriptor] + elapsed_s
                if self._is_serving and silent_s[descriptor] > MAX_SILENCE_S:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(follower.pid, signal.SIGUSR1)
                    time.sleep(_LAST_WORDS_S)
                    reason = f"rank {follower.rank} hung: it gave no sign of life for {MAX_SILENCE_S:g} s"
                    self._fail(EngineFailed(reason, is_startup_error=False))
                    return

    def _read(self, follower: _Follower) -> EngineFailed | None:
        try:
            reports = follower.connection.receive_all(block=False)
        except (ConnectionClosed, msgspec.MsgspecError):
            return EngineFailed(f"rank {follower.rank} ended unexpectedly ({_exit_of(follower.pid)})", False)
        failed = next((report for report in reports if isinstance(report, EngineFailed)), None)
        if failed is None or failed.is_startup_error:
            return failed
        return msgspec.structs.replace(failed, message=f"rank {follower.rank} failed: {failed.message}")

    def _fail(self, failed: EngineFailed) -> None:
        self._has_failed.set()
        for follower in self._followers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(follower.pid, signal.SIGKILL)
        self._on_failed(failed)


_REPORTS: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


def _exit_of(pid: int) -> str:
    """How a process whose socket has closed ended."""
    deadline = time.monotonic() + _EXIT_GRACE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return describe_exit(os.waitstatus_to_exitcode(status))
        time.sleep(0.01)
    return "its socket closed"
