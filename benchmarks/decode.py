"""Decode and prefill speed of the engine on this machine, next to what limits it and to a peer, in one run.

`python -m benchmarks.decode --shape 1.8b` makes a random checkpoint of that shape (kept in benchmarks/.cache), steps
the engine in this process (no HTTP) and prints, for each batch size, tokens a second, the share of the time that
reading the weights once must take, and transformers' generate on the same weights (mapped to its Qwen2 class).
`--llama-python PATH` adds llama.cpp through a Python that has llama-cpp-python and gguf (see llama_peer.py);
with `--same-file` the engine serves the very GGUF file that llama.cpp made and reads.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoints import random_folder
from benchmarks.engine_requests import decode_step_s, greedy_request, random_prompts, timed_steps
from benchmarks.figures import circumstances, print_figures
from benchmarks.peers import transformers_peer
from benchmarks.peers.llama_process import LlamaPeer
from benchmarks.peers.llama_process import add_arguments as add_llama_arguments
from demo import random_checkpoint
from model.contract.engine_config import EngineConfig
from model.contract.gguf.file import is_gguf, read_gguf
from model.contract.gguf.tensor_names import EMBEDDING, kept_bytes
from model.loop.engine import Engine

_PREFILL_LEN = 512


def memory_bandwidth(num_bytes: int = 1 << 30, repeats: int = 5) -> float:
    """Bytes a second that this machine reads from memory: the best of several sums over a large array."""
    data = torch.ones(num_bytes // 4)
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        data.sum()
        best = min(best, time.perf_counter() - started)
    return num_bytes / best


def measure_decode(engine: Engine, batch_size: int, prompt_len: int, num_tokens: int, next_id: int) -> float:
    """Returns the median seconds of a decode step with `batch_size` sequences."""
    for seq_id, prompt in enumerate(random_prompts(engine, batch_size, prompt_len, seed=batch_size), next_id):
        engine.add_request(greedy_request(seq_id, prompt, num_tokens))
    return decode_step_s(engine, batch_size)


def measure_prefill(engine: Engine, prompt_len: int, next_id: int) -> float:
    """Returns the prompt tokens per second of one prompt."""
    (prompt,) = random_prompts(engine, 1, prompt_len)
    engine.add_request(greedy_request(next_id, prompt, 1))
    return prompt_len / sum(seconds for seconds, _ in timed_steps(engine))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures everything and returns the figures."""
    checkpoint = folder = random_folder(arguments.shape)
    bandwidth = memory_bandwidth()
    peer = LlamaPeer(arguments) if arguments.llama_python else None
    length = {"prompt_len": arguments.prompt_len, "num_tokens": arguments.num_tokens}
    if arguments.same_file:
        if peer is None:
            raise SystemExit("--same-file needs --llama-python, which makes the file")
        peer.ask(do="batch", batch_size=1, **length)  # the file exists once it has answered
        checkpoint = folder / f"model-{arguments.llama_quantization}.gguf"
    engine = Engine(
        EngineConfig(
            checkpoint_path=str(checkpoint),
            dtype=arguments.dtype,
            lm_head_dtype=arguments.lm_head_dtype,
            kv_cache_dtype=arguments.kv_cache_dtype,
            enable_prefix_caching=False,
            speculation="off",  # random tokens give nothing to guess by
            max_step_ms=0,  # all prompts first: the steps that decode all of them are what is measured
            max_model_len=max(_PREFILL_LEN, arguments.prompt_len + arguments.num_tokens) + 1,
            max_num_batched_tokens=max(_PREFILL_LEN, *arguments.batch_sizes),
        )
    )
    read_bytes = engine.ready.weights_bytes - embedding_bytes(checkpoint)
    next_ids = itertools.count(1, 1000)
    sources: dict[str, Callable[[int], float]] = {
        "engine": lambda size: size / measure_decode(engine, size, **length, next_id=next(next_ids))
    }
    if peer is not None:
        sources["llama.cpp"] = lambda size: peer.ask(do="batch", batch_size=size, **length)
    if arguments.transformers:
        qwen2 = transformers_peer.load_as_qwen2(folder)
        sources["transformers"] = lambda size: transformers_peer.measure(qwen2, size, **length)
    rates: dict[str, dict[int, list[float]]] = {name: {size: [] for size in arguments.batch_sizes} for name in sources}
    for number in range(arguments.rounds):
        # Other work on the machine comes and goes: what is compared is measured in turns, close together.
        for size in arguments.batch_sizes:
            for name, measure in sources.items():
                rates[name][size].append(measure(size))
            latest = {name: round(rates[name][size][-1], 2) for name in sources}
            print(f"round {number}, batch {size}, tokens/s: {latest}", flush=True)
    prefill = measure_prefill(engine, _PREFILL_LEN, next(next_ids))
    return {
        "shape": arguments.shape,
        "dtype": arguments.dtype,
        "checkpoint": checkpoint.name,
        "lm_head_dtype": arguments.lm_head_dtype,
        "kv_cache_dtype": arguments.kv_cache_dtype,
        "prompt_len": arguments.prompt_len,
        **circumstances(),
        "memory_gb_per_s": bandwidth / 1e9,
        "decode": _rows(rates, read_bytes / bandwidth),
        "prefill_tokens_per_s": prefill,
        "rounds": rates,
    }


def _rows(rates: dict[str, dict[int, list[float]]], least_step_s: float) -> list[dict[str, float]]:
    """Returns the medians of each batch size; `least_step_s` is the time that reading the weights once takes."""
    rows = []
    for size in rates["engine"]:
        medians = {name: statistics.median(measured[size]) for name, measured in rates.items()}
        rate = medians.pop("engine")
        row: dict[str, float] = {
            "batch_size": size,
            "ms_per_step": size / rate * 1e3,
            "tokens_per_s": rate,
            "share_of_limit": least_step_s * rate / size,
        }
        for name, other in medians.items():
            row[f"{name}_tokens_per_s"], row[f"ratio_to_{name}"] = other, rate / other
        rows.append(row)
    return rows


def embedding_bytes(folder: Path) -> int:
    """Bytes of the embedding table: a step reads a few rows of it, not all."""
    if is_gguf(folder):
        packed_bytes, num_plain = kept_bytes({EMBEDDING: read_gguf(folder).tensors[EMBEDDING]})
        return packed_bytes + 2 * num_plain
    config = json.loads((folder / "config.json").read_text())
    width = 4 if config["fp32"] else 2
    return int(config["vocab_size"] * config["hidden_size"] * width)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Decode speed against the memory's limit and against peers.")
    parser.add_argument("--shape", choices=sorted(random_checkpoint.SHAPES), default="1.8b")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--lm-head-dtype", choices=["auto", "int8"], default="auto")
    parser.add_argument("--kv-cache-dtype", choices=["auto", "int8"], default="auto", help="the peer's is q8_0 then")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--prompt-len", type=int, default=64)
    parser.add_argument("--num-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=1, help="measure so often, in turns; medians are reported")
    parser.add_argument("--transformers", action="store_true", help="measure transformers too")
    add_llama_arguments(parser, "bf16")
    parser.add_argument("--same-file", action="store_true", help="serve the GGUF file that llama.cpp reads")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    print_figures(run(arguments), arguments.json)


if __name__ == "__main__":
    main()
