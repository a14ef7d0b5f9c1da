"""The options of `qwen-server export`, for the command and for the process that does the work."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = (
    "Writes one GGUF file that llama.cpp loads, and this server too: weights, vocabulary, chat format, context, NTK and"
    " LogN."
)
_TYPES = ("bf16", "q8_0", "q4_0")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument("source", metavar="MODEL", help="unquantised checkpoint")
    parser.add_argument("target", metavar="OUT.gguf", type=_target, help="file to write; must not exist")
    parser.add_argument(
        "--type", choices=_TYPES, default="bf16", dest="weight_type", help="of the matrices (default: bf16)"
    )


def _target(text: str) -> Path:
    if not text.lower().endswith(".gguf"):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .gguf")
    return Path(text)
