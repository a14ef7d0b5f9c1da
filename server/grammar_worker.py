"""A process that tries grammars out in children it can afford to lose.

A hostile schema can keep a compiler busy for hours or fill the memory, and a thread cannot be ended. So this process
loads the vocabulary once and forks a child for each trial; the kernel ends a child that takes too long or too much.

It inherits one socket. First the vocabulary comes over it, then, for each trial, another socket by which the child
receives the grammars and answers. It ends when the server closes the first one.
"""

from __future__ import annotations

import argparse
import array
import base64
import contextlib
import json
import os
import resource
import signal
import socket
import struct
from typing import NoReturn

from llguidance import LLMatcher, LLTokenizer

from model.grammar_compiler import GrammarError, compile_grammar, make_ll_tokenizer
from model.tokenizer import Tokenizer

TIME_LIMIT_S = 1.5
# Once a child has said this, silence means that it was ended.
STARTED = b"S"
FRAME_HEADER = struct.Struct("!Q")

_MAX_EXTRA_MEMORY_BYTES = 1 << 30
# Grammars that compile can still be too large to be walked; most show it with the first few tokens.
_NUM_PROBE_TOKENS = 8
_MAX_MESSAGE_CHARS = 400
_NICENESS = 5  # compiling gives way to generating


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
                _run_trial(trial, ll_tokenizer)
            trial.close()


def send_ranks(control: socket.socket, tokenizer: Tokenizer) -> None:
    """Sends the vocabulary, as a worker expects it first."""
    tokens = [base64.b64encode(tokenizer.token_bytes(i)).decode() for i in range(tokenizer.num_tokens)]
    data = json.dumps(tokens).encode()
    control.sendall(FRAME_HEADER.pack(len(data)) + data)


def _read_ranks(control: socket.socket) -> dict[bytes, int]:
    (length,) = FRAME_HEADER.unpack(_receive_exactly(control, FRAME_HEADER.size))
    tokens = json.loads(_receive_exactly(control, length))
    return {base64.b64decode(token): rank for rank, token in enumerate(tokens) if token}  # control tokens have no text


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


def _run_trial(trial: socket.socket, ll_tokenizer: LLTokenizer) -> NoReturn:
    """The life of a child."""
    try:
        os.nice(_NICENESS)
        _limit_memory()
        trial.sendall(STARTED)
        grammars = json.loads(b"".join(iter(lambda: trial.recv(1 << 16), b"")))
        signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT_S)  # the kernel ends the process then
        answer = [_judge(ll_tokenizer, grammar) for grammar in grammars]
        trial.sendall(json.dumps(answer).encode())
    finally:
        os._exit(0)


def _limit_memory() -> None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _MAX_EXTRA_MEMORY_BYTES, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _judge(ll_tokenizer: LLTokenizer, grammar: str) -> str | None:
    """Returns what is wrong with a grammar, or None."""
    try:
        _walk(compile_grammar(ll_tokenizer, grammar))
    except GrammarError as error:
        return str(error)[:_MAX_MESSAGE_CHARS]
    return None


def _walk(matcher: LLMatcher) -> None:
    """Follows a grammar for a few tokens, always the first one allowed.

    Raises:
        GrammarError: it leads nowhere, or is too large to be followed.
    """
    for _ in range(_NUM_PROBE_TOKENS):
        mask = matcher.compute_bitmask()
        if matcher.is_stopped() and not matcher.is_error():
            return
        index = next((i for i, byte in enumerate(mask) if byte), None)
        if index is not None:
            matcher.consume_token(8 * index + (mask[index] & -mask[index]).bit_length() - 1)
        if matcher.is_error():
            raise GrammarError("it has too many alternatives in one place (such as optional properties)")
        if index is None:
            raise GrammarError("no text can match it")


if __name__ == "__main__":
    main()
