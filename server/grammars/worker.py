"""A process that tries grammars in children that may be killed.

A hostile schema can keep a compiler busy for hours or fill the memory, and a thread cannot be killed. So this process
loads the vocabulary once and forks a child for each trial; the kernel kills a child that takes too much time or memory.

The vocabulary comes over its standard input. It inherits a socket, over which comes, for each trial, another socket by
which the child receives the grammars and answers. It ends when the server closes the first one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import socket
import sys
import time
from typing import NoReturn

import msgspec
from llguidance import LLMatcher, LLTokenizer

from model.contract.grammar_compiler import ACCOUNT_S, GrammarAccount, GrammarError, compile_grammar, make_ll_tokenizer
from model.contract.tokenizer import Tokenizer

# CPU time of a trial: a busy machine should not refuse what an idle one takes.
TIME_LIMIT_S = 1.0
# Wall time of a trial, so that nobody waits for long where the machine is busy.
WAIT_LIMIT_S = 10.0
# A child says this first; if nothing follows, it was killed.
STARTED = b"S"
_MAX_EXTRA_MEMORY_BYTES = 1 << 30
# Grammars that compile can still be too large to be followed; most show it within the first few tokens.
_NUM_PROBE_TOKENS = 8
# Ambiguous grammars take longer with each token: they are followed for so many, or for so long.
_NUM_DEEP_TOKENS = 64
_DEEP_S = 0.4
_MAX_MESSAGE_CHARS = 2000
_NICENESS = 5  # compiling gives way to generating

# Why a grammar cannot be used, and the time it took to find out; or None, and how far a choice with this grammar falls
# behind its allowance (`GrammarAccount`). Both in seconds of CPU time.
Verdict = tuple[str | None, float]


def main() -> None:
    """Forks a child for each trial, until the server closes its socket."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    control = socket.socket(fileno=parser.parse_args().fd)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children leave no zombies
    with contextlib.suppress(OSError, msgspec.DecodeError):  # the server has ended
        tokenizer = Tokenizer(unpack_ranks(sys.stdin.buffer.read()))
        ll_tokenizer = make_ll_tokenizer(tokenizer, tokenizer.num_tokens)
        while True:
            _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
            if not descriptors:  # the server has closed the socket
                return
            with socket.socket(fileno=descriptors[0]) as trial:
                if os.fork() == 0:
                    control.close()
                    _run_trial(trial, ll_tokenizer, tokenizer)


def pack_ranks(tokenizer: Tokenizer) -> bytes:
    """Returns a vocabulary as a worker expects it."""
    return msgspec.msgpack.encode([tokenizer.token_bytes(i) for i in range(tokenizer.num_tokens)])


def unpack_ranks(packed: bytes) -> dict[bytes, int]:
    """Returns the ranks of a vocabulary that `pack_ranks` packed."""
    tokens = msgspec.msgpack.decode(packed, type=list[bytes])
    return {token: rank for rank, token in enumerate(tokens) if token}  # control tokens have no text


def _run_trial(trial: socket.socket, ll_tokenizer: LLTokenizer, tokenizer: Tokenizer) -> NoReturn:
    """Judges the grammars that come over a socket and ends the process, which is the child."""
    try:
        trial.sendall(STARTED)
        os.nice(_NICENESS)
        _limit_memory()
        grammars = json.loads(b"".join(iter(lambda: trial.recv(1 << 16), b"")))
        # These kill the process when their time is over.
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
    started = time.process_time()
    try:
        return None, _walk(compile_grammar(ll_tokenizer, grammar), tokenizer)
    except GrammarError as error:
        return str(error)[:_MAX_MESSAGE_CHARS], time.process_time() - started


def _walk(matcher: LLMatcher, tokenizer: Tokenizer) -> float:
    """Follows a grammar for some tokens: at first the first token allowed, then the longest one.

    Returns:
        How far a choice with this grammar falls behind its allowance, in seconds of CPU time.

    Raises:
        GrammarError: no token is allowed, or the grammar is too large to be followed.
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
