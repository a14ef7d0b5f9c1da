"""The options of `qwen-server perplexity`, for the command and for the process that does the work."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from server.hubs.demo import DEMO
from tools.command_line import positive

DESCRIPTION = (
    "Perplexity by length of text, as in the published long-context table: without any of them, with dynamic NTK, with"
    " LogN too, and with windows too. On a GPU where there is one."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument("source", metavar="MODEL", nargs="?", default=DEMO, help="checkpoint (default: a demo)")
    parser.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help="plain text, or JSON or JSONL with `text`, `messages` or `conversations` (default: own)",
    )
    parser.add_argument(
        "--lengths",
        type=_lengths,
        default=("1x", "2x", "4x", "8x"),
        metavar="N,Nx,...",
        help="tokens, or with an x times the trained length (default: 1x,2x,4x,8x)",
    )
    parser.add_argument(
        "--num-pieces", type=positive, default=4, help="of text, each as long as the longest length (default: 4)"
    )
    parser.add_argument(
        "--attention-window",
        type=_windows,
        metavar="N",
        help="of the last row, as of serve (default: by thirds of the layers 1/4, 1/2 and all of the trained length)",
    )
    parser.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float16", "float32"), help="(auto)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda[:N], xpu[:N] or mps (default: auto)")
    parser.add_argument("--threads", type=positive, help="CPU threads (default: all cores; 1 for small models)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")


def _lengths(text: str) -> tuple[str, ...]:
    if not re.fullmatch(r"[1-9]\d{0,7}x?(,[1-9]\d{0,7}x?)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of lengths such as 1x,2x or 2048,8192")
    return tuple(text.split(","))


def _windows(text: str) -> tuple[str, ...]:
    if not re.fullmatch(r"\d{1,8}(,\d{1,8})*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of tokens nor one a layer with commas between")
    return tuple(text.split(","))
