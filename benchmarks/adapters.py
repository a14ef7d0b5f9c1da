"""What LoRA adapters cost a decode step: mixed in a batch, unused by its rows, and idle.

`python -m benchmarks.adapters --shape 1.8b-int4` makes a random checkpoint and adapters of that shape (kept in
benchmarks/.cache), and steps two engines in this process: one without adapters, and one with `--adapters` of them at
`--rank`. Each case is measured once a round, close together; what is reported is the median of a case's ratios to the
engine without adapters in the same round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.checkpoints import CACHE, random_folder
from benchmarks.engine_requests import decode_step_s, greedy_request, random_prompts
from benchmarks.figures import circumstances, print_figures
from demo import random_checkpoint
from model.contract.engine_config import EngineConfig
from model.contract.files.linears import linear_shapes
from model.contract.files.model_config import read_model_config
from model.loop.engine import Engine

_IDLE_RANK = 8


def random_adapter(base: Path, rank: int) -> Path:
    """The random adapter of a rank for a checkpoint, made if it is not there; the published script's targets."""
    folder = CACHE / f"{base.name}-rank{rank}"
    if (folder / "adapter_config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = read_model_config(base)
    tensors = {}
    for layer, (part, (num_inputs, num_outputs)) in itertools.product(
        range(config.num_layers), linear_shapes(config).items()
    ):
        name = f"base_model.model.transformer.h.{layer}.{part}"
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, num_inputs).mul_(0.01).bfloat16()
        tensors[f"{name}.lora_B.weight"] = torch.randn(num_outputs, rank).mul_(0.01).bfloat16()
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = ["c_attn", "c_proj", "w1", "w2"]
    fields = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "bias": "none", "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder


def measure(engine: Engine, adapter_ids: Sequence[int], num_tokens: int, next_id: int) -> float:
    """Returns the median seconds of a decode step with one sequence for each adapter id (0: no adapter)."""
    prompts = random_prompts(engine, len(adapter_ids), 2)
    for seq_id, (prompt, adapter_id) in enumerate(zip(prompts, adapter_ids, strict=True), next_id):
        engine.add_request(greedy_request(seq_id, prompt, num_tokens, adapter_id))
    return decode_step_s(engine, len(adapter_ids))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures everything and returns the figures."""
    base = random_folder(arguments.shape)
    count, rows = arguments.adapters, arguments.rows
    folders = [random_adapter(base, arguments.rank)] * count + [random_adapter(base, _IDLE_RANK)] * arguments.idle
    settings: dict[str, Any] = {
        "checkpoint_path": str(base), "enable_prefix_caching": False, "max_model_len": 1024,
        "kv_cache_memory_bytes": 1 << 30, "num_threads": arguments.threads,
    }  # fmt: skip
    plain = Engine(EngineConfig(**settings))
    adapted = Engine(EngineConfig(**settings, max_adapters=len(folders)))
    store = adapted._runner.worker.adapters
    assert store is not None
    ids = list(range(1, count + 1))
    for number, folder in enumerate(folders[:count]):
        store.install(number + 1, store.prepare(folder))
    num_bytes = store.num_bytes // count
    next_ids = itertools.count(1, 1000)
    cases = {
        "no row has an adapter": (adapted, [0] * rows),
        f"{count} adapters over {rows} rows": (adapted, [ids[i % count] for i in range(rows)]),
        f"one adapter on {rows} rows": (adapted, ids[:1] * rows),
        "one row of them has an adapter": (adapted, [1] + [0] * (rows - 1)),
    }
    ratios: dict[str, list[float]] = {name: [] for name in cases}
    times: list[float] = []

    def round_of(some: dict[str, tuple[Engine, list[int]]]) -> None:
        for name, (engine, adapter_ids) in some.items():
            before = measure(plain, [0] * rows, arguments.num_tokens, next(next_ids))
            with_adapters = measure(engine, adapter_ids, arguments.num_tokens, next(next_ids))
            after = measure(plain, [0] * rows, arguments.num_tokens, next(next_ids))
            times.append(before)
            ratios.setdefault(name, []).append(2 * with_adapters / (before + after))
            print(f"{name}: {ratios[name][-1]:.3f} ({with_adapters * 1e3:.1f} ms)", flush=True)

    for _ in range(arguments.rounds):
        round_of(cases)
    for number, folder in enumerate(folders[count:], start=count):
        store.install(number + 1, store.prepare(folder))
    for _ in range(arguments.rounds if arguments.idle else 0):
        round_of({f"{arguments.idle} idle ones loaded": (adapted, [0] * rows)})
    return {
        "shape": arguments.shape,
        "rank": arguments.rank,
        "adapter_bytes": num_bytes,
        **circumstances(),
        "plain_ms": statistics.median(times) * 1e3,
        "ratio": {name: round(statistics.median(found), 3) for name, found in ratios.items()},
        "ratios": {name: [round(ratio, 3) for ratio in found] for name, found in ratios.items()},
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="What adapters cost a decode step.")
    parser.add_argument("--shape", choices=sorted(random_checkpoint.SHAPES), default="1.8b")
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rows", type=int, default=16, help="sequences in the batch")
    parser.add_argument("--idle", type=int, default=0, help=f"so many more adapters of rank {_IDLE_RANK}, unused")
    parser.add_argument("--num-tokens", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    print_figures(run(arguments), arguments.json)


if __name__ == "__main__":
    main()
