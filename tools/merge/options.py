"""The options of `qwen-server merge`, for the command and for the process that does the work."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from tools.convert.options import DTYPES

DESCRIPTION = "Writes a whole checkpoint in the published layout; a quantised one is expanded."


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOptions:
    """A merge.

    Attributes:
        source: folder of the checkpoint that the adapter was trained on.
        adapter: folder of the adapter.
        target: folder to write; missing or empty.
        dtype: dtype of the weights; "auto" is the embedding's.
    """

    source: Path
    adapter: Path
    target: Path
    dtype: str = "auto"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags; they parse to the fields of `MergeOptions`."""
    parser.add_argument("source", metavar="MODEL", help="checkpoint that the adapter was trained on")
    parser.add_argument("adapter", metavar="ADAPTER", help="folder or hub id of a LoRA adapter as peft saves it")
    parser.add_argument("target", metavar="OUT", type=Path, help="folder to write; missing or empty")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="of the weights (default: the checkpoint's; GPTQ is expanded)"
    )
