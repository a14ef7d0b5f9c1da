"""Tiles for the products with Int4 weights, timed on a GPU: what the table of `choose_tiles` was made from.

`python -m benchmarks.gptq_tiles` records calls that rotate among weights, so that none is found in the cache, in CUDA
graphs, checks each candidate against torch, and prints the fastest of each shape and number of rows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from model.backends.cuda import torch_operations
from model.backends.cuda.gptq_layout import PackedWeight
from model.backends.cuda.kernels.matmul import gptq_matmul as gptq
from model.backends.cuda.kernels.matmul.gptq_matmul import Tiles
from server.run_module import module_command

# Outputs, inputs.
SHAPES = {
    "7b c_proj": (4096, 4096),
    "7b w1": (11008, 4096),
    "7b mlp.c_proj": (4096, 11008),
    "1.8b c_attn": (6144, 2048),
    "1.8b c_proj": (2048, 2048),
    "1.8b mlp.c_proj": (2048, 5504),
    "72b w1": (24576, 8192),
}
CANDIDATES = {
    8: [
        Tiles(4, 8, 16, 4), Tiles(4, 8, 32, 4), Tiles(4, 8, 64, 4), Tiles(8, 8, 16, 8), Tiles(2, 8, 32, 2),
        Tiles(2, 8, 64, 2),
    ],
    16: [Tiles(0, 16, 128, 4), Tiles(0, 16, 64, 4), Tiles(0, 16, 64, 4, 4), Tiles(4, 16, 16, 4)],
    32: [Tiles(0, 32, 64, 4), Tiles(0, 32, 64, 4, 4)],
    64: [Tiles(0, 64, 64, 4), Tiles(0, 64, 64, 4, 4)],
    256: [Tiles(0, 64, 64, 4), Tiles(0, 128, 64, 4)],
}  # fmt: skip
_WANTED_WARPS = (528, 1056)
# Together larger than any cache.
_WEIGHT_BYTES = 160 << 20


def _weights(shape: tuple[int, int]) -> list[PackedWeight]:
    num_outputs, num_inputs = shape
    limit = (1 << 31) - 1
    scales = (torch.rand(num_inputs // 128, num_outputs, device="cuda") / 100 + 1e-3).half()
    copies = max(2, -(-_WEIGHT_BYTES // (num_outputs * num_inputs // 2)))
    words = torch.randint(-limit, limit, (copies, num_outputs, num_inputs // 8), dtype=torch.int32, device="cuda")
    return [PackedWeight(part, scales, 4, 128, num_inputs, num_outputs) for part in words]


def time_us(call: Callable[[int], object], num_calls: int) -> float:
    """Microseconds of one of so many calls, recorded together."""
    call(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(num_calls):
            call(index)
    times = []
    for _ in range(6):
        marks: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
        marks[0].record()
        graph.replay()
        marks[1].record()
        marks[1].synchronize()
        times.append(marks[0].elapsed_time(marks[1]) * 1e3 / num_calls)
    return statistics.median(times[1:])


def _timed(name: str, weights: list[PackedWeight], num_rows: int) -> Iterator[dict[str, Any]]:
    x = torch.randn(num_rows, weights[0].in_features, device="cuda").bfloat16()
    exact = torch_operations.gptq_matmul(x, weights[0], None).float()
    num_calls = max(16, len(weights))
    table = next(tiles for limit, tiles in CANDIDATES.items() if num_rows <= limit)
    for tiles in table:
        for wanted_warps in _WANTED_WARPS:
            candidate = tiles._replace(wanted_warps=wanted_warps)
            result = {"shape": name, "rows": num_rows, "tiles": list(candidate)}
            with mock.patch.object(gptq, "choose_tiles", lambda *_, chosen=candidate: chosen):
                try:
                    error = (gptq.gptq_matmul(x, weights[0], None).float() - exact).norm() / exact.norm()
                    us = time_us(lambda i: gptq.gptq_matmul(x, weights[i % len(weights)], None), num_calls)
                    yield {**result, "us": round(us, 2), "error": round(float(error), 5)}
                except Exception as failure:  # one that cannot be compiled or started is out of the race
                    yield {**result, "failure": repr(failure)[:200]}
    us = time_us(lambda i: gptq.gptq_matmul(x, weights[i % len(weights)], None), num_calls)
    yield {"shape": name, "rows": num_rows, "tiles": "as served", "us": round(us, 2)}


def _many_rows(name: str, weights: list[PackedWeight]) -> Iterator[dict[str, Any]]:
    """Where dequantising begins to pay."""
    dense = [torch.randn(weight.out_features, weight.in_features, device="cuda").bfloat16() for weight in weights[:4]]
    for num_rows in (128, 256, 512):
        x = torch.randn(num_rows, weights[0].in_features, device="cuda").bfloat16()
        calls: dict[str, Callable[[int], object]] = {
            "tiles": lambda i, x=x: gptq._few_rows(x, weights[i % len(weights)], None, batch_invariant=False),
            "dequantised": lambda i, x=x: gptq._many_rows(x, weights[i % len(weights)], None),
            "cuBLAS, bf16": lambda i, x=x: torch.nn.functional.linear(x, dense[i % len(dense)]),
        }
        for way, call in calls.items():
            yield {"shape": name, "rows": num_rows, "tiles": way, "us": round(time_us(call, 16), 2)}


def _compile_share(index: int, count: int) -> None:
    """Fills the cache of compiled kernels: the candidates of one process among several."""
    weight = _weights((256, 1024))[0]
    candidates = [(rows, tiles) for rows, table in CANDIDATES.items() for tiles in table]
    for rows, tiles in candidates[index::count]:
        with mock.patch.object(gptq, "choose_tiles", lambda *_, chosen=tiles: chosen):
            try:
                gptq.gptq_matmul(torch.randn(rows, 1024, device="cuda").bfloat16(), weight, None)
            except Exception as failure:
                print(tiles, repr(failure)[:200])


def _print_table(results: list[dict[str, Any]]) -> None:
    for name, rows in dict.fromkeys((result["shape"], result["rows"]) for result in results):
        own = [result for result in results if (result["shape"], result["rows"]) == (name, rows)]
        order = sorted((result for result in own if "us" in result), key=lambda result: result["us"])
        fastest = "; ".join(f"{r['tiles']} {r['us']}" for r in order[:5])
        served = "".join(f" | {r['tiles']} {r['us']}" for r in order[5:] if isinstance(r["tiles"], str))
        print(f"{name}, {rows} rows: {fastest}{served}")
    print("largest error:", max(result.get("error", 0.0) for result in results))
    print("failures:", [result for result in results if "failure" in result])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="begin no further shape after these")
    parser.add_argument("--json", type=Path, help="write all times here")
    parser.add_argument("--compile", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.compile:
        _compile_share(*map(int, arguments.compile.split("/")))
        return
    started = time.monotonic()
    count = max(1, min(12, (os.cpu_count() or 2) - 2))
    command = module_command("benchmarks.gptq_tiles", "--compile")
    workers = [subprocess.Popen([*command, f"{index}/{count}"]) for index in range(count)]
    for worker in workers:
        worker.wait()
    print(f"{torch.cuda.get_device_name()}; compiled in {time.monotonic() - started:.0f} s")
    results: list[dict[str, Any]] = []
    for name, shape in SHAPES.items():
        if time.monotonic() - started > arguments.seconds:
            print(f"no time for {name}")
            continue
        weights = _weights(shape)
        for num_rows in (1, 4, 16, 32, 64, 128, 256):
            results += _timed(name, weights, num_rows)
        if name == "7b w1":
            results += _many_rows(name, weights)
        if arguments.json:
            arguments.json.write_text(json.dumps(results))
    _print_table(results)
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
