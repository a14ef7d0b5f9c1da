"""How close decoding and prefill come to what the device can do, and where transformers stands beside it, in one run.

`python -m benchmarks.roofline --shapes 7b 7b-int4` makes random weights on the device, steps the engine (no HTTP) and
prints for each shape and batch size: ms a step, tokens/s, the bytes that a step must move (weights once, the keys and
values of all sequences), and the share of the time that these bytes, or the operations, must take at the measured copy
bandwidth and matmul peak. `--json` and `--png` write the figures; `--peer` adds transformers' Qwen2 of the same shape.
"""

from __future__ import annotations

import argparse
import gc
from pathlib import Path
from typing import Any

import torch

from benchmarks.roofline import device_limits
from benchmarks.roofline.measure import measure
from benchmarks.roofline.random_model import SHAPES
from benchmarks.roofline.report import table, write
from server.version import server_version


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures all shapes and returns the figures."""
    device = torch.device(arguments.device)
    dtype = torch.float32 if arguments.dtype == "float32" else torch.bfloat16
    limits = {
        "copy_bytes_per_s": device_limits.copy_bytes_per_s(device),
        "matmul_flops_per_s": device_limits.matmul_flops_per_s(device, dtype),
    }
    figures = _circumstances(arguments, device, limits)
    shapes: list[dict[str, Any]] = []
    for name in arguments.shapes:
        shapes.append(measure(name, arguments, device, limits))
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if arguments.peer and not SHAPES[name].quantized_bits:
            from benchmarks.peers.transformers_on_device import measure_peer

            shapes[-1]["transformers"] = measure_peer(SHAPES[name], arguments, device, dtype)
        write(arguments, figures | {"shapes": shapes})  # what comes next may not end well
    return figures | {"shapes": shapes}


def _circumstances(arguments: argparse.Namespace, device: torch.device, limits: dict[str, float]) -> dict[str, Any]:
    return {
        "commit": server_version().commit,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "prompt_len": arguments.prompt_len,
        "num_tokens": arguments.num_tokens,
        "top_p": arguments.top_p,
        **limits,
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Decode and prefill speed against the device's limits.")
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=["1.8b", "7b", "7b-int4"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--prompt-len", type=int, default=512)
    parser.add_argument("--num-tokens", type=int, default=256)
    parser.add_argument("--top-p", type=float, default=1.0, help="draw at temperature 1 (default: greedy)")
    parser.add_argument("--prefill-len", type=int, default=4096)
    parser.add_argument("--max-model-len", type=int, default=8192)
    parser.add_argument("--kv-cache-memory-bytes", type=int, help="default: what is free")
    parser.add_argument("--no-cuda-graphs", action="store_true")
    parser.add_argument("--peer", action="store_true", help="measure transformers too")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--png", type=Path, help="draw the shares here")
    return parser.parse_args(arguments)


def main() -> None:
    """The command."""
    arguments = parse()
    figures = run(arguments)
    print(table(figures))


if __name__ == "__main__":
    main()
