"""The arguments of `qwen-server bench`. --help imports this file, so it must import nothing slow."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tools.bench.lengths import Lengths

CHAT, COMPLETIONS = "chat", "completions"
DESCRIPTION = (
    "Load on any OpenAI-compatible server: throughput, time to first token, time between tokens, failures. Lengths are"
    " N, LOW:HIGH, normal:MEAN:DEVIATION or lognormal:MEDIAN:SIGMA, the last two with :MOST at the end if you like."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    _add_what(parser)
    _add_requests(parser)
    add = parser.add_argument
    add("--json", type=Path, metavar="FILE", help="write the figures here")
    add("--raw", action="store_true", help="with the numbers of each request")
    add("--plot", type=Path, metavar="FILE.png", help="draw the figures (needs matplotlib: qwen-server[bench])")
    add("--compare", type=Path, nargs=2, metavar="FILE", help="send nothing; compare two files made by --json")


def _add_what(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--base-url", default="http://127.0.0.1:8000", help="of the server; /v1 is added to one without a path")
    add("--model", help="name to ask for (default: the first the server lists)")
    add("--api-key", help="sent as a bearer token (default: the variable OPENAI_API_KEY)")
    add("--endpoint", choices=(CHAT, COMPLETIONS), default=CHAT, help="(default: chat)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--concurrency", type=_positive_int, nargs="+", metavar="N", help="requests at a time; several are run in turn"
    )
    how.add_argument("--request-rate", type=_positive_float, nargs="+", metavar="R", help="Poisson arrivals a second")
    add("--num-requests", type=_positive_int, metavar="N", help="at each level (default: 4 a stream, at least 8)")
    add("--max-duration-s", type=_positive_float, metavar="S", help="begin no more requests after this time")
    add("--warmup", type=_count, metavar="N", help="short requests before each level (default: one a stream)")
    add("--timeout-s", type=_positive_float, default=600.0, metavar="S", help="for one request (default: 600)")


def _add_requests(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    standard = Lengths(64, 64)
    add("--prompt-tokens", type=_lengths, default=standard, metavar="LENGTHS", help="of prompts (default: 64)")
    add("--prompt-kind", choices=("ids", "words"), help="of completions (default: ids; chat is always words)")
    add("--token-ids", type=_ids, default=(33, 255), metavar="LOW:HIGH", help="that prompts are made of (33:255)")
    add("--shared-prefix-tokens", type=_count, default=0, metavar="N", help="before each prompt, the same for all")
    add("--max-tokens", type=_lengths, default=standard, metavar="LENGTHS", help="of replies (default: 64)")
    add("--ignore-eos", action="store_true", help="ask for exactly --max-tokens")
    add("--temperature", type=float, default=0.0, metavar="T", help="(default: 0)")
    add("--extra-body", type=_json_object, metavar="JSON", help='added to each request, as {"top_p": 0.9}')
    add("--requests", type=Path, metavar="FILE", help="JSONL of request bodies to send instead")
    add("--seed", type=int, default=0, help="of lengths, arrivals and sampling (default: 0)")
    add("--stream", action=argparse.BooleanOptionalAction, default=True, help="ask for server-sent events")


def _positive_int(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def _count(text: str) -> int:
    if int(text) < 0:
        raise ValueError
    return int(text)


def _positive_float(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise ValueError
    return float(text)


def _lengths(text: str) -> Lengths:
    try:
        return Lengths.parse(text)
    except ValueError as error:
        kinds = "N, LOW:HIGH, normal:MEAN:DEVIATION or lognormal:MEDIAN:SIGMA, from 1"
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form {kinds}") from error


def _ids(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    if not 0 <= int(low) <= int(high):
        raise ValueError
    return int(low), int(high)


def _json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError
    return value
