"""What `qwen-server merge` can be told; one list for the command and for the process that does the work."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from tools.convert.options import DTYPES


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOptions:
    """A merge.

    Attributes:
        source: folder of the checkpoint that the adapter was trained on.
        adapter: folder of the adapter.
        target: folder to write; missing or empty.
        dtype: of the weights; "auto" is that of the checkpoint's embedding.
    """

    source: Path
    adapter: Path
    target: Path
    dtype: str = "auto"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags; `read_options` understands what they parse to."""
    parser.add_argument("source", metavar="MODEL", help="checkpoint that the adapter was trained on")
    parser.add_argument("adapter", metavar="ADAPTER", help="folder or hub id of a LoRA adapter as peft saves it")
    parser.add_argument("target", metavar="OUT", type=Path, help="folder to write; missing or empty")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="of the weights (default: the checkpoint's; GPTQ is expanded)"
    )


def read_options(arguments: argparse.Namespace, source: Path, adapter: Path) -> MergeOptions:
    """Builds the options.

    Args:
        arguments: parsed by what `add_arguments` added.
        source: folder of the checkpoint.
        adapter: folder of the adapter.
    """
    return MergeOptions(**{**vars(arguments), "source": source, "adapter": adapter})


def to_argv(options: MergeOptions) -> list[str]:
    """The arguments that parse to these options."""
    return [str(options.source), str(options.adapter), str(options.target), f"--dtype={options.dtype}"]
