"""A process that tries grammars out in children it can afford to lose.

A hostile schema can keep a compiler busy for hours or fill the memory, and a thread cannot be ended. So this process
loads the vocabulary once and forks a child for each trial; the kernel ends a child that takes too long or too much.

It inherits one socket. First the vocabulary comes over it, then, for each trial, another socket by which the child
receives the grammars and answers. It ends when the server closes the first one.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import json
import os
import resource
import signal
import socket
import time
from typing import NoReturn

import msgspec
from llguidance import LLMatcher, LLTokenizer

from model.contract.framing import HEADER_BYTES, frame
from model.contract.grammar_compiler import ACCOUNT_S, GrammarAccount, GrammarError, compile_grammar, make_ll_tokenizer
from model.contract.tokenizer import Tokenizer

# Of CPU time: a busy machine should not refuse what an idle one takes.
TIME_LIMIT_S = 1.0
# From the first to the last moment, so that nobody waits for long where the machine is busy.
WAIT_LIMIT_S = 10.0
# Once a child has said this, silence means that it was ended.
STARTED = b"S"
_MAX_EXTRA_MEMORY_BYTES = 1 << 30
# Grammars that compile can still be too large to be walked; most show it with the first few tokens.
_NUM_PROBE_TOKENS = 8
# Those that can be read in many ways take longer with each token: so far they are followed, as long as this is quick.
_NUM_DEEP_TOKENS = 64
_DEEP_S = 0.4
_MAX_MESSAGE_CHARS = 2000
_NICENESS = 5  # compiling gives way to generating

# What is wrong with a grammar, and how long it took to find out; or None, and how far a choice falls behind with it.
# Both in seconds of CPU time.
Verdict = tuple[str | None, float]


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    control = socket.socket(fileno=parser.parse_args().fd)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children leave no zombies
    with contextlib.suppress(OSError, EOFError):
        tokenizer = Tokenizer(_read_ranks(control))
        ll_tokenizer = make_ll_tokenizer(tokenizer, tokenizer.num_tokens)
        while True:
            trial = _receive_socket(control)
            if os.fork() == 0:
                control.close()
                _run_trial(trial, ll_tokenizer, tokenizer)
            trial.close()


def send_ranks(control: socket.socket, tokenizer: Tokenizer) -> None:
    """Sends the vocabulary, as a worker expects it first."""
    tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.num_tokens)]
    control.sendall(frame(msgspec.msgpack.encode(tokens)))


def _read_ranks(control: socket.socket) -> dict[bytes, int]:
    # Not a byte more: what comes next brings a descriptor along.
    length = int.from_bytes(_receive_exactly(control, HEADER_BYTES), "little")
    tokens = msgspec.msgpack.decode(_receive_exactly(control, length), type=list[bytes])
    return {token: rank for rank, token in enumerate(tokens) if token}  # control tokens have no text


def _receive_exactly(sock: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        piece = sock.recv(length - len(data))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def _receive_socket(control: socket.socket) -> socket.socket:
    descriptors = array.array("i")
    data, ancillary, _, _ = control.recvmsg(1, socket.CMSG_SPACE(descriptors.itemsize))
    if not data:
        raise EOFError
    descriptors.frombytes(ancillary[0][2][: descriptors.itemsize])
    return socket.socket(fileno=descriptors[0])


def _run_trial(trial: socket.socket, ll_tokenizer: LLTokenizer, tokenizer: Tokenizer) -> NoReturn:
    """The life of a child."""
    try:
        trial.sendall(STARTED)
        os.nice(_NICENESS)
        _limit_memory()
        grammars = json.loads(b"".join(iter(lambda: trial.recv(1 << 16), b"")))
        # The kernel ends the process then.
        signal.setitimer(signal.ITIMER_PROF, TIME_LIMIT_S)
        signal.setitimer(signal.ITIMER_REAL, WAIT_LIMIT_S)
        answer = [_judge(ll_tokenizer, grammar, tokenizer) for grammar in grammars]
        trial.sendall(json.dumps(answer).encode())
    finally:
        os._exit(0)


def _limit_memory() -> None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _MAX_EXTRA_MEMORY_BYTES, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _judge(ll_tokenizer: LLTokenizer, grammar: str, tokenizer: Tokenizer) -> Verdict:
    """Returns what is wrong with a grammar, and what it costs."""
    started = time.process_time()
    try:
        return None, _walk(compile_grammar(ll_tokenizer, grammar), tokenizer)
    except GrammarError as error:
        return str(error)[:_MAX_MESSAGE_CHARS], time.process_time() - started


def _walk(matcher: LLMatcher, tokenizer: Tokenizer) -> float:
    """Follows a grammar for some tokens: first always the first one allowed, then always the longest.

    Returns:
        How far a choice of this grammar falls behind the CPU time that it may take, in seconds.

    Raises:
        GrammarError: it leads nowhere, or is too large to be followed.
    """
    account = GrammarAccount()
    lowest = account.left_s
    for number in range(_NUM_DEEP_TOKENS):
        if number >= _NUM_PROBE_TOKENS and time.process_time() > _DEEP_S:
            break
        started = time.process_time()
        mask = matcher.compute_bitmask()
        if matcher.is_stopped() and not matcher.is_error():
            break
        spent_s = time.process_time() - started
        token_id = _first(mask) if number < _NUM_PROBE_TOKENS else _longest(mask, tokenizer)
        started = time.process_time()
        if token_id is not None:
            matcher.consume_token(token_id)
        if matcher.is_error():
            raise GrammarError("it has too many alternatives in one place (such as optional properties)")
        if token_id is None:
            raise GrammarError("no text can match it")
        account.pay(spent_s + time.process_time() - started)
        lowest = min(lowest, account.left_s)
    return ACCOUNT_S - lowest


def _first(mask: bytes) -> int | None:
    index = next((i for i, byte in enumerate(mask) if byte), None)
    return None if index is None else 8 * index + (mask[index] & -mask[index]).bit_length() - 1


def _longest(mask: bytes, tokenizer: Tokenizer) -> int | None:
    allowed = (8 * index + bit for index, byte in enumerate(mask) if byte for bit in range(8) if byte >> bit & 1)
    return max(allowed, key=lambda token_id: len(tokenizer.token_bytes(token_id)), default=None)


if __name__ == "__main__":
    main()
