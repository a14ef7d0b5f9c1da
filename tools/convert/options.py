"""The options of `qwen-server convert`, for the command and for the process that does the work."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

LAYOUTS = ("qwen2", "qwen")
DTYPES = ("auto", "bfloat16", "float16", "float32")
DESCRIPTION = (
    "The same weights under the names that current tools know, a block at a time, with tokenizer files that give the"
    " same ids; --to qwen is the way back."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """A conversion.

    Attributes:
        source: folder of a checkpoint.
        target: folder to write; missing or empty.
        to: the layout to write, of LAYOUTS.
        dtype: dtype of the weights; "auto" leaves them as they are; quantised ones get the embedding's.
    """

    source: Path
    target: Path
    to: str
    dtype: str = "auto"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags; they parse to the fields of `ConvertOptions`."""
    parser.add_argument("source", metavar="MODEL", help="checkpoint in the other layout")
    parser.add_argument("target", metavar="OUT", type=Path, help="folder to write; missing or empty")
    parser.add_argument(
        "--to",
        choices=LAYOUTS,
        required=True,
        help="qwen2: transformers' Qwen2 layout, which every current tool opens; qwen: the published layout",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="of the weights (default: as they are; GPTQ is expanded)"
    )
