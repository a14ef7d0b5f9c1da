"""One sequence by the length of its context: decode and prefill, next to llama.cpp, in one run and in turns.

`python -m benchmarks.context --shape 1.8b-int4 --llama-quantization q4_0 --llama-python PATH` grows one sequence, in
the engine and in the peer, to each length in turn, and decodes a few tokens behind it in every round; what was decoded
is dropped again. Random weights, so nothing is guessed ahead. `--plot FILE.svg` draws the figures.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import random_folder
from benchmarks.context.plot import draw
from benchmarks.engine_requests import greedy_request, random_prompts, timed_steps
from benchmarks.figures import circumstances, print_figures
from benchmarks.peers.llama_process import LlamaPeer
from benchmarks.peers.llama_process import add_arguments as add_llama_arguments
from demo import random_checkpoint
from model.contract.engine_config import EngineConfig
from model.loop.engine import Engine

_BATCH = 512


class OneSequence:
    """The engine with one growing prompt; the prefix cache keeps what was computed."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        longest = max(arguments.lengths) + arguments.num_tokens + 32
        self.engine = Engine(
            EngineConfig(
                checkpoint_path=str(random_folder(arguments.shape)),
                lm_head_dtype=arguments.lm_head_dtype,
                kv_cache_dtype=arguments.kv_cache_dtype,
                kv_cache_memory_bytes=arguments.kv_cache_memory << 20,
                speculation="off",
                max_model_len=longest,
                max_num_batched_tokens=_BATCH,
            )
        )
        (self._ids,) = random_prompts(self.engine, 1, longest)
        self._next_ids = itertools.count(1)
        self._spent, self._num_cached = 0.0, 0

    def grow(self, length: int) -> float:
        """Seconds that the sequence took to have that length, all that it had before included.

        Beyond the trained length it has another rotary base (NTK), and all is computed anew.
        """
        started = time.perf_counter()
        self._steps(length, 1)
        spent = time.perf_counter() - started
        self._spent = spent + (self._spent if self._num_cached else 0.0)
        return self._spent

    def decode(self, length: int, num_tokens: int) -> float:
        """Seconds of a step that decodes behind the sequence, the median."""
        return statistics.median(self._steps(length, num_tokens + 1)[1:])

    def _steps(self, length: int, num_tokens: int) -> list[float]:
        self.engine.add_request(greedy_request(next(self._next_ids), self._ids[:length], num_tokens))
        steps = []
        for seconds, outputs in timed_steps(self.engine):
            for output in outputs:
                steps.append(seconds)
                if output.num_cached_tokens is not None:
                    self._num_cached = output.num_cached_tokens
        return steps


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures everything and returns the figures."""
    ours = OneSequence(arguments)
    peer = LlamaPeer(arguments) if arguments.llama_python else None
    if peer is not None:
        peer.ask(do="open", num_tokens=max(arguments.lengths) + arguments.num_tokens + 32)
    peer_spent = 0.0
    rows = []
    for length in sorted(arguments.lengths):
        spent = ours.grow(length)
        if peer is not None:
            peer_spent += peer.ask(do="grow", length=length)
        rounds: list[tuple[float, float]] = []
        for _ in range(arguments.rounds):
            own = ours.decode(length, arguments.num_tokens)
            other = peer.ask(do="decode", num_tokens=arguments.num_tokens) if peer is not None else float("nan")
            rounds.append((1 / own, 1 / other))
        row = {
            "length": length,
            "decode": statistics.median(own for own, _ in rounds),
            "peer_decode": statistics.median(other for _, other in rounds),
            "decode_ratio": statistics.median(own / other for own, other in rounds),
            "prefill": length / spent,
            "peer_prefill": length / peer_spent if peer is not None else float("nan"),
            "prefill_ratio": peer_spent / spent,
        }
        rows.append(row)
        print({name: round(value, 2) for name, value in row.items()}, flush=True)
    return {
        "shape": arguments.shape,
        "lm_head_dtype": arguments.lm_head_dtype,
        "kv_cache_dtype": arguments.kv_cache_dtype,
        "peer": arguments.llama_quantization,
        **circumstances(),
        "rows": rows,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Speed of one sequence by the length of its context.")
    parser.add_argument("--shape", choices=sorted(random_checkpoint.SHAPES), default="1.8b-int4")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 4096, 8192, 16384])
    parser.add_argument("--num-tokens", type=int, default=4, help="decoded in a round")
    parser.add_argument("--rounds", type=int, default=5, help="medians of so many are reported")
    parser.add_argument("--kv-cache-memory", type=int, default=4096, help="MiB")
    parser.add_argument("--kv-cache-dtype", choices=["auto", "int8"], default="auto", help="the peer's is q8_0 then")
    parser.add_argument("--lm-head-dtype", choices=["auto", "int8"], default="auto")
    add_llama_arguments(parser, "q4_0")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="draw them, as SVG")
    arguments = parser.parse_args()
    figures = run(arguments)
    print_figures(figures, arguments.json)
    if arguments.plot:
        arguments.plot.write_text(draw(figures))


if __name__ == "__main__":
    main()
