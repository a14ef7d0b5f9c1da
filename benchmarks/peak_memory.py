"""Peak memory of one sequence at the published settings: 2,048 tokens in, and 8,192 out.

`python -m benchmarks.peak_memory --shapes 7b 7b-int4` makes random weights and a KV cache of just that many tokens,
runs the prefill and some decode steps (the cache is allocated before the first, so more of them would take no more),
and prints what the device had reserved at its peak beside the published figure.
"""

from __future__ import annotations

import argparse
import gc
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.roofline.measure import Load, kv_bytes_per_token
from benchmarks.roofline.random_model import SHAPES, make_engine

# Of one A100 with transformers and auto-gptq, GB (2048 in, 8192 out).
PUBLISHED_GB = {
    "7b": (17.7, 22.6),
    "7b-int4": (8.2, 13.6),
    "14b": (30.2, 38.9),
    "14b-int4": (13.0, 21.8),
    "72b-int4": (48.9, None),
}
_CASES = {"2048 in": (2048, 64), "8192 out": (1, 8192)}
_BLOCK_SIZE = 16


def measure(name: str, device: torch.device, num_decodes: int = 32) -> dict[str, Any]:
    """Returns the peak memory of each case, in bytes.

    Args:
        name: a key of `SHAPES`.
        device: a CUDA device; on a CPU nothing is counted.
        num_decodes: decode steps after the prefill.
    """
    shape = SHAPES[name]
    figures: dict[str, Any] = {"shape": name}
    for index, (case, (prompt_len, num_tokens)) in enumerate(_CASES.items()):
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        length = -(-(prompt_len + num_tokens) // _BLOCK_SIZE) * _BLOCK_SIZE
        width = 2 if device.type == "cuda" else 4
        engine = make_engine(
            shape,
            device=str(device),
            dtype="bfloat16" if device.type == "cuda" else "float32",
            max_model_len=length,
            max_num_seqs=1,
            kv_cache_memory_bytes=length * kv_bytes_per_token(shape, width),
            enable_prefix_caching=False,
        )
        load = Load(engine, shape.vocab_size)
        load.add(1, prompt_len, min(num_tokens, num_decodes))
        load.drain()
        peak = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None
        published = PUBLISHED_GB.get(name, (None, None))[index]
        figures[case] = {"peak_bytes": peak, "published_gb": published}
        print(f"{name}, {case}: {'' if peak is None else f'{peak / 1e9:.1f} GB'}, published {published}", flush=True)
        del engine, load
        gc.collect()
    return figures


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Peak memory at the published settings.")
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=list(PUBLISHED_GB))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    figures = [measure(name, torch.device(arguments.device)) for name in arguments.shapes]
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
