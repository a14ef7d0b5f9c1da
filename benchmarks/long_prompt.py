"""How long a reply stalls while another request's long prompt is computed, and what that costs the prompt.

`python -m benchmarks.long_prompt --shape 1.8b-int4` makes a random checkpoint of that shape (kept in .cache),
lets one sequence decode, adds a long prompt, and prints the longest time between two tokens of the first sequence and
the time to the second's first token: with chunks bounded in time (`--max-step-ms`), in tokens only, and alone. The
three take turns in one engine; medians are reported.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import random_folder
from benchmarks.engine_requests import greedy_request, random_prompts
from benchmarks.figures import circumstances, print_figures
from demo import random_checkpoint
from model.contract.engine_config import EngineConfig
from model.loop.engine import Engine

_CHAT, _PROMPT = 0, 1


class Bench:
    """One engine without a prefix cache, and new requests for each turn."""

    def __init__(self, engine: Engine, prompt_len: int) -> None:
        self._engine = engine
        self._prompt_len = prompt_len
        self._num_turns = 0

    def turn(self, max_step_ms: float, *, beside_a_chat: bool) -> dict[str, float]:
        """Computes the long prompt once.

        Args:
            max_step_ms: limit of a step; 0 for none.
            beside_a_chat: another sequence decodes meanwhile.

        Returns:
            "prompt_s" until the prompt's first token and, beside a chat, "longest_gap_s" of the chat.
        """
        engine = self._engine
        engine._scheduler.prefill_budget.max_step_s = max_step_ms / 1000
        self._num_turns += 1
        chat, prompt = (10 * self._num_turns + kind for kind in (_CHAT, _PROMPT))
        if beside_a_chat:
            self._add(chat, 32, 4000)
            for _ in range(6):
                engine.step()
        self._add(prompt, self._prompt_len, 1)
        started = last = time.perf_counter()
        gaps = []
        while True:
            ids = {output.seq_id for output in engine.step().outputs}
            now = time.perf_counter()
            if chat in ids:
                gaps.append(now - last)
                last = now
            if prompt in ids:
                break
        engine.abort([chat])
        figures = {"prompt_s": now - started}
        return figures | {"longest_gap_s": max(gaps)} if gaps else figures

    def _add(self, seq_id: int, prompt_len: int, max_tokens: int) -> None:
        (prompt,) = random_prompts(self._engine, 1, prompt_len, seed=seq_id)
        self._engine.add_request(greedy_request(seq_id, prompt, max_tokens))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures everything and returns the figures."""
    folder = random_folder(arguments.shape)
    engine = Engine(EngineConfig(checkpoint_path=str(folder), enable_prefix_caching=False, max_model_len=8192))
    bench = Bench(engine, arguments.prompt_len)
    kinds: dict[str, tuple[float, bool]] = {f"{ms:g} ms": (ms, True) for ms in arguments.max_step_ms}
    kinds |= {"512 tokens": (0, True), "alone": (0, False)}
    rounds: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for number in range(arguments.rounds):
        for kind, (max_step_ms, beside_a_chat) in kinds.items():
            rounds[kind].append(bench.turn(max_step_ms, beside_a_chat=beside_a_chat))
            print(f"round {number}, {kind}: {rounds[kind][-1]}", flush=True)
    medians = {
        kind: {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
        for kind, turns in rounds.items()
    }
    # Ratios within a round: the machine is not the same in all of them.
    price = {
        kind: statistics.median(
            turn["prompt_s"] / alone["prompt_s"] for turn, alone in zip(turns, rounds["alone"], strict=True)
        )
        for kind, turns in rounds.items()
    }
    return {
        "shape": arguments.shape,
        "prompt_len": arguments.prompt_len,
        **circumstances(),
        "medians": medians,
        "prompt_s_to_alone": price,
        "rounds": rounds,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="The longest gap of a stream beside a long prompt, and its price.")
    parser.add_argument("--shape", choices=sorted(random_checkpoint.SHAPES), default="1.8b-int4")
    parser.add_argument("--prompt-len", type=int, default=2000)
    parser.add_argument("--max-step-ms", type=float, nargs="+", default=[400.0])
    parser.add_argument("--rounds", type=int, default=5, help="measure so often, in turns; medians are reported")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    print_figures(run(arguments), arguments.json)


if __name__ == "__main__":
    main()
