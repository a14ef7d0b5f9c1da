"""What attention windows save at a long context: prompts and decode steps with and without, in turns.

`python -m benchmarks.windows demo/checkpoint --length 8000 --windows 2048 512` computes a prompt of so many tokens and
decodes a few behind it, in an engine without windows and in one for each size; medians of rounds, in processor time.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from pathlib import Path

import torch

from benchmarks.engine_requests import greedy_request, timed_steps
from model.contract.engine_config import EngineConfig
from model.loop.engine import Engine

_NUM_DECODED = 20


class Contestant:
    """An engine with one window for all layers, or none.

    Args:
        window: in tokens; 0 for none.
        length: tokens in the prompt.
    """

    def __init__(self, folder: Path, window: int, length: int) -> None:
        self._engine = Engine(
            EngineConfig(
                checkpoint_path=str(folder),
                attention_window=(window,),
                max_model_len=length + _NUM_DECODED,
                speculation="off",
                enable_prefix_caching=False,
                num_threads=1,
            )
        )
        vocab_size = self._engine.ready.vocab_size
        self._prompt = [(131 * i + 7) % vocab_size for i in range(length)]
        self._ids = itertools.count(1)
        self.prefill_s: list[float] = []
        self.step_s: list[float] = []

    def turn(self) -> None:
        """Computes the prompt once and decodes a few tokens."""
        self._engine.add_request(greedy_request(next(self._ids), self._prompt, _NUM_DECODED))
        prefill_s = 0.0
        steps: list[float] = []
        for seconds, outputs in timed_steps(self._engine, time.process_time):
            if not steps:
                prefill_s += seconds
            if outputs:
                steps.append(seconds)
        self.prefill_s.append(prefill_s)
        self.step_s.append(statistics.median(steps[1:]))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Prompts and decode steps with and without windows.")
    parser.add_argument("folder", type=Path, help="a checkpoint")
    parser.add_argument("--length", type=int, default=8000, help="of the prompt")
    parser.add_argument("--windows", type=int, nargs="+", default=[2048, 512])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    contestants = {n: Contestant(arguments.folder, n, arguments.length) for n in (0, *arguments.windows)}
    for _ in range(arguments.rounds):
        for contestant in contestants.values():
            contestant.turn()
    whole = contestants[0]
    print("| window | prompt, s | as fast | step, ms | as fast |\n|---|---|---|---|---|")
    for window, each in contestants.items():
        ratios = [
            statistics.median(a / b for a, b in zip(before, after, strict=True))
            for before, after in ((whole.prefill_s, each.prefill_s), (whole.step_s, each.step_s))
        ]
        print(
            f"| {window or 'none'} | {statistics.median(each.prefill_s):.2f} | {ratios[0]:.2f} |"
            f" {1000 * statistics.median(each.step_s):.2f} | {ratios[1]:.2f} |"
        )


if __name__ == "__main__":
    main()
