"""Measures decode and prefill of one shape with random weights."""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import replace
from typing import Any

import torch

from benchmarks.roofline import device_limits
from benchmarks.roofline.random_model import SHAPES, make_engine
from demo.random_checkpoint import Shape
from model.contract.messages import AddRequest
from model.contract.sampling_params import SamplingParams
from model.loop.engine import Engine


class Load:
    """Runs sequences of equal lengths in an engine.

    Args:
        vocab_size: prompts have random ids below this.
        top_p: below 1 samples at temperature 1; 1 is greedy.
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
