"""The flags of `qwen-server memory`."""

from __future__ import annotations

import argparse
import re

from model.contract.config import NO_QUANTIZATION, QUANTIZED_BITS
from model.contract.memory_plan import DTYPE_BYTES, KV_DTYPE_BYTES
from server.config.types import parse_size
from server.hubs.download import add_hub_arguments
from tools.command_line import number, positive

DESCRIPTION = "Reckons weights, KV cache and what fits into a device, from config.json alone."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument("model", metavar="MODEL", help="a folder, a hub id, or a published shape such as qwen-7b-int4")
    parser.add_argument("--dtype", choices=("auto", *DTYPE_BYTES), default="auto", help="of weights and activations")
    parser.add_argument(
        "--quantization", choices=(NO_QUANTIZATION, *QUANTIZED_BITS), default=NO_QUANTIZATION, help="at load"
    )
    parser.add_argument("--kv-cache-dtype", choices=("auto", *KV_DTYPE_BYTES), default="auto", help="of the cache")
    parser.add_argument("--block-size", type=positive, default=16, help="tokens in a block (default: %(default)s)")
    parser.add_argument("--max-model-len", type=positive, help="prompt and reply together (default: the checkpoint's)")
    parser.add_argument(
        "--attention-window", type=_windows, metavar="N", help="as of serve (default: the checkpoint's window_attn)"
    )
    parser.add_argument("--max-num-seqs", type=positive, default=256, help="most in one step (default: %(default)s)")
    parser.add_argument(
        "--max-num-batched-tokens", type=positive, default=4096, help="most tokens in one step (default: %(default)s)"
    )
    parser.add_argument(
        "--tensor-parallel-size",
        type=positive,
        default=1,
        metavar="N",
        help="devices that share each layer; figures are then of each (default: %(default)s)",
    )
    parser.add_argument(
        "--pipeline-parallel-size",
        type=positive,
        default=1,
        metavar="N",
        help="devices that layers are dealt out to; figures are then of the largest part (default: %(default)s)",
    )
    parser.add_argument(
        "--device-memory", type=_size, action="append", metavar="SIZE", help="such as 80GiB (repeatable; default: some)"
    )
    parser.add_argument(
        "--gpu-memory-utilization", type=_share, default=0.9, help="share of it to use (default: %(default)s)"
    )
    parser.add_argument("--max-loras", type=positive, help="so many LoRA adapters beside it")
    parser.add_argument("--max-lora-rank", type=positive, default=64, help="rank of them (default: %(default)s)")
    add_hub_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _windows(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of tokens nor one a layer with commas between")
    return tuple(map(int, text.split(",")))


def _share(text: str) -> float:
    if not 0 < number(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share above 0 and up to 1")
    return number(text)


def _size(text: str) -> int:
    try:
        value = parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from error
    if not isinstance(value, int) or value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no memory at all")
    return value
