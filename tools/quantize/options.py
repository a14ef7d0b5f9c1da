"""The options of `qwen-server quantize`, for the command and for the process that does the work."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from tools.command_line import number, positive

_DAMP = 0.01  # the published checkpoints' value
DESCRIPTION = "GPTQ in the published layout, layer by layer; on a GPU where there is one."


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeOptions:
    """A quantisation.

    Attributes:
        source: folder of an unquantised checkpoint.
        target: folder to write; must not exist.
        bits: 4 or 8.
        group_size: inputs that share a scale; -1 is all of them.
        act_order: quantise the inputs that matter most first (`desc_act`).
        damp: added to the diagonal of the Hessian, as a share of its mean.
        calibration: a file with text; None takes the built-in text.
        num_samples: pieces of calibration text.
        sample_length: tokens in a piece.
        seed: decides which pieces are chosen.
        device: "auto", "cpu" or "cuda[:N]".
        num_threads: CPU threads; None lets torch choose.
    """

    source: Path
    target: Path
    bits: int
    group_size: int = 128
    act_order: bool = False
    damp: float = _DAMP
    calibration: Path | None = None
    num_samples: int = 64
    sample_length: int = 512
    seed: int = 0
    device: str = "auto"
    num_threads: int | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags; they parse to the fields of `QuantizeOptions`."""
    parser.add_argument("source", metavar="SRC", help="unquantised checkpoint")
    parser.add_argument("target", metavar="DST", type=Path, help="folder to write; must not exist")
    parser.add_argument("--bits", type=int, choices=(4, 8), required=True, help="of each weight")
    parser.add_argument(
        "--group-size", type=_group_size, default=128, help="inputs that share a scale, -1 for all (default: 128)"
    )
    parser.add_argument("--act-order", action="store_true", help="quantise the inputs that matter most first")
    parser.add_argument("--damp", type=_damp, default=_DAMP, help="share of the mean added to the Hessian's diagonal")
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="plain text, or JSON or JSONL with `text`, `messages` or `conversations` (default: own)",
    )
    parser.add_argument("--num-samples", type=positive, default=64, help="pieces of calibration text (default: 64)")
    parser.add_argument("--sample-length", type=positive, default=512, help="tokens of each (default: 512)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of calibration text (default: 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda[:N], xpu[:N] or mps (default: auto)")
    parser.add_argument("--threads", type=positive, dest="num_threads", help="CPU threads (default: all cores)")


def _group_size(text: str) -> int:
    if text == "-1":
        return -1
    size = positive(text)
    if size % 8:
        raise argparse.ArgumentTypeError("must be -1 or a multiple of 8")
    return size


def _damp(text: str) -> float:
    if not 0 < number(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return number(text)
