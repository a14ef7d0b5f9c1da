"""How close decoding and prefill come to what the device can do, and where transformers stands beside it, in one run.

`python -m benchmarks.roofline --shapes 7b 7b-int4` makes random weights on the device, steps the engine (no HTTP) and
prints for each shape and batch size: ms a step, tokens/s, the bytes that a step must move (weights once, the keys and
values of all sequences), and the share of the time that these bytes, or the operations, must take at the measured copy
bandwidth and matmul peak. `--json` and `--png` write the figures; `--peer` adds transformers' Qwen2 of the same shape.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import device_limits
from benchmarks.roofline_model import SHAPES, make_engine
from demo.random_checkpoint import Shape
from model.contract.messages import AddRequest
from model.contract.sampling_params import SamplingParams
from model.loop.engine import Engine
from server.version import server_version


class Load:
    """Sequences of one engine, all alike.

    Args:
        engine: to step.
        vocab_size: of its checkpoint.
        top_p: below 1 draws at temperature 1; 1 is greedy.
    """

    def __init__(self, engine: Engine, vocab_size: int, top_p: float = 1.0) -> None:
        self._engine = engine
        self._sampling = SamplingParams(
            max_tokens=1, temperature=0.0 if top_p == 1 else 1.0, top_p=top_p, ignore_eos=True
        )
        self._vocab_size = vocab_size
        self._random = random.Random(0)
        self._next_id = 0

    def add(self, num_seqs: int, prompt_len: int, num_tokens: int) -> None:
        """Queues sequences."""
        sampling = replace(self._sampling, max_tokens=num_tokens)
        for _ in range(num_seqs):
            prompt = [self._random.randrange(self._vocab_size) for _ in range(prompt_len)]
            self._next_id += 1
            self._engine.add_request(
                AddRequest(seq_ids=(self._next_id,), request_id="bench", prompt_ids=prompt, sampling=sampling)
            )

    def decode(self, num_seqs: int, prompt_len: int, num_tokens: int) -> float | None:
        """Seconds a step, mean over all steps in which every sequence decodes; None if their keys do not all fit."""
        self.add(num_seqs, prompt_len, num_tokens)
        marks = []
        while self._engine.has_work():
            if len(self._engine.step().outputs) == num_seqs:
                marks.append(time.perf_counter())
        # The first step of all still holds prefill, the last two drain what was launched ahead.
        marks = marks[1:-2]
        if len(marks) < 2:
            return None
        return (marks[-1] - marks[0]) / (len(marks) - 1)

    def prefill(self, prompt_len: int) -> float:
        """Seconds until the first token of one prompt."""
        self.add(1, prompt_len, 1)
        started = time.perf_counter()
        while self._engine.has_work():
            self._engine.step()
        return time.perf_counter() - started

    def steps(self, count: int) -> None:
        """Steps, whatever they do."""
        for _ in range(count):
            self._engine.step()

    def drain(self) -> None:
        """Steps until nothing is left."""
        while self._engine.has_work():
            self._engine.step()


def kv_bytes_per_token(shape: Shape, itemsize: int) -> int:
    """Keys and values of one position in all layers."""
    return 2 * shape.num_layers * shape.hidden_size * itemsize


def block_flops_per_token(shape: Shape) -> int:
    """Multiplications and additions of the linears of all blocks and the head."""
    hidden, inner = shape.hidden_size, shape.intermediate_size // 2
    per_block = 4 * hidden * hidden + 3 * hidden * inner
    return 2 * (shape.num_layers * per_block + shape.vocab_size * hidden)


def measure(name: str, arguments: argparse.Namespace, device: torch.device, limits: dict[str, float]) -> dict[str, Any]:
    """All figures of one shape."""
    shape = SHAPES[name]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    engine = make_engine(
        shape,
        device=str(device),
        dtype=arguments.dtype,
        kv_cache_dtype=arguments.kv_cache_dtype,
        max_model_len=arguments.max_model_len,
        max_num_seqs=max(arguments.batch_sizes),
        speculation="off",  # random tokens repeat by chance, and a step is what is measured
        max_step_ms=0,
        kv_cache_memory_bytes=arguments.kv_cache_memory_bytes,
        enable_prefix_caching=False,
        cuda_graphs=not arguments.no_cuda_graphs,
    )
    ready = engine.ready
    width = 4 if ready.dtype == "float32" else 2
    weights = ready.weights_bytes - shape.vocab_size * shape.hidden_size * width
    kv_bytes = kv_bytes_per_token(shape, 1 if arguments.kv_cache_dtype == "int8" else width)
    load = Load(engine, shape.vocab_size, arguments.top_p)
    load.decode(1, 8, 8)
    rows = []
    for batch_size in arguments.batch_sizes:
        step_s = load.decode(batch_size, arguments.prompt_len, arguments.num_tokens)
        if step_s is None:
            print(f"{name}: {batch_size} sequences of this length do not fit into the memory together", flush=True)
            continue
        num_bytes = weights + batch_size * (arguments.prompt_len + arguments.num_tokens / 2) * kv_bytes
        least = max(
            num_bytes / limits["copy_bytes_per_s"],
            batch_size * block_flops_per_token(shape) / limits["matmul_flops_per_s"],
        )
        rows.append(
            {
                "batch_size": batch_size,
                "ms_per_step": step_s * 1e3,
                "tokens_per_s": batch_size / step_s,
                "bytes_per_step": num_bytes,
                "share_of_limit": least / step_s,
            }
        )
        print(f"{name}: {json.dumps(rows[-1])}", flush=True)
    load.prefill(arguments.prefill_len)
    prefill_s = load.prefill(arguments.prefill_len)
    load.add(1, 16, 64)
    load.steps(8)
    busy = device_limits.busy_share(lambda: load.steps(32), device)
    load.drain()
    flops = arguments.prefill_len * (block_flops_per_token(shape) - 2 * shape.vocab_size * shape.hidden_size)
    return {
        "shape": name,
        "dtype": ready.dtype,
        "weights_bytes": ready.weights_bytes,
        "kv_cache_bytes": ready.kv_cache_bytes,
        "decode": rows,
        "device_busy_share_at_batch_1": busy,
        "prefill_tokens_per_s": arguments.prefill_len / prefill_s,
        "prefill_share_of_limit": flops / limits["matmul_flops_per_s"] / prefill_s,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }


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
            from benchmarks.roofline_peer import measure_peer

            shapes[-1]["transformers"] = measure_peer(SHAPES[name], arguments, device, dtype)
        write(arguments, figures | {"shapes": shapes})  # what comes next may not end well
    return figures | {"shapes": shapes}


def write(arguments: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Writes what was asked for."""
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    if arguments.png:
        draw(figures, arguments.png)


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


def table(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        f"{figures['device']}, torch {figures['torch']}, commit {figures['commit']}: copy "
        f"{figures['copy_bytes_per_s'] / 1e9:,.0f} GB/s, matmul {figures['matmul_flops_per_s'] / 1e12:,.2f} TFLOP/s\n",
        "| shape | sequences | ms a step | tokens/s | share of the limit | transformers eager | static, compiled |",
        "|---|---|---|---|---|---|---|",
    ]
    for shape in figures["shapes"]:
        peers = shape.get("transformers", {})
        for row in shape["decode"]:
            key = str(row["batch_size"])
            others = (peers.get(kind, {}).get(key) for kind in ("eager", "static_compiled"))
            cells = ["" if rate is None else f"{rate:,.1f}" for rate in others]
            lines.append(
                f"| {shape['shape']} | {key} | {row['ms_per_step']:.2f} | {row['tokens_per_s']:,.1f} "
                f"| {row['share_of_limit']:.2f} | {' | '.join(cells)} |"
            )
        lines.append(
            f"| {shape['shape']} | prefill | | {shape['prefill_tokens_per_s']:,.0f} "
            f"| {shape['prefill_share_of_limit']:.2f} | | |"
        )
    return "\n".join(lines)


def draw(figures: dict[str, Any], path: Path) -> None:
    """Draws the shares of the limit over the batch sizes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for shape in figures["shapes"]:
        sizes = [row["batch_size"] for row in shape["decode"]]
        axes.plot(sizes, [row["share_of_limit"] for row in shape["decode"]], marker="o", label=shape["shape"])
    axes.set_xscale("log", base=2)
    axes.set_ylim(0, 1)
    axes.set_xlabel("sequences in a step")
    axes.set_ylabel("share of the device's limit")
    axes.set_title(f"Decoding, {figures['device']}")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


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
