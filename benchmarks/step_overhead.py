"""What the engine's own Python takes of a step: everything but the model's arithmetic.

`python -m benchmarks.step_overhead --rows 256` steps an engine whose model returns at once, and prints the
milliseconds of a decode step of so many sequences, its message to the HTTP process included.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine_requests import greedy_request
from demo import random_checkpoint
from model.contract.engine_config import EngineConfig
from model.contract.messages import encode
from model.loop.engine import Engine


class NoModel:
    """Stands where the model does.

    Args:
        vocab_size: columns of the logits.
    """

    def __init__(self, vocab_size: int) -> None:
        self._logits = torch.zeros(4096, vocab_size)

    def __call__(self, batch: Any, cache: Any) -> torch.Tensor:
        """Returns hidden states [T, 1]."""
        return torch.zeros(len(batch.token_ids), 1)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns logits [R, vocab_size]."""
        return self._logits[: len(hidden)]


def measure(num_rows: int, num_steps: int, *, speculation: str) -> float:
    """Milliseconds of a decode step: the least of many, for whatever else runs only adds to it."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        shape = random_checkpoint.Shape(num_layers=1, hidden_size=64, num_heads=1, intermediate_size=64)
        random_checkpoint.write(checkpoint, shape)
        config = EngineConfig(
            checkpoint_path=str(checkpoint), max_num_seqs=num_rows, num_threads=1, speculation=speculation
        )
        engine = Engine(config)
    engine._runner.worker.model = NoModel(shape.vocab_size)  # type: ignore[assignment]
    for seq_id in range(num_rows):
        engine.add_request(greedy_request(seq_id, [seq_id % 256, *range(20)], num_steps + 100))
    best = float("inf")
    for _ in range(num_steps):
        started = time.perf_counter()
        step = engine.step()
        encode(step)
        elapsed = time.perf_counter() - started
        if len(step.outputs) == num_rows:
            best = min(best, elapsed)
    return best * 1e3


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Milliseconds of the engine's own work in a step.")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    for speculation in ("off", "auto"):
        figures = {rows: round(measure(rows, arguments.steps, speculation=speculation), 3) for rows in arguments.rows}
        print(json.dumps({"speculation": speculation, "ms_by_rows": figures}))


if __name__ == "__main__":
    main()
