"""What speculation gains for one sequence, on texts that repeat parts of their prompt and on texts that do not.

`python -m benchmarks.speculation --shape 1.8b-int4 --llama-python PATH` makes a random checkpoint of that shape
and generates the replies of texts/speculation.json: edits of code, answers from a passage, tool calls, prose.
Random weights give no sensible replies, so the replies of a good model are written down, and the sampler returns their
tokens once the logits are computed; all else is as in the server. llama.cpp gets the same replies. One engine takes
turns with and without guesses, and llama.cpp without and with its own prompt lookup; medians are reported.

`--simulate 40 42 47 75 125` computes nothing: it counts the steps, and what they would gain where steps of 1, 2, 4, 8
and 16 rows take so many milliseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoints import random_folder
from benchmarks.engine_requests import greedy_request
from benchmarks.figures import circumstances, print_figures
from benchmarks.peers.llama_process import LlamaPeer
from benchmarks.peers.llama_process import add_arguments as add_llama_arguments
from demo import random_checkpoint
from model.contract.engine_config import EngineConfig
from model.contract.sampling_params import SamplingParams
from model.contract.tokenizer import Tokenizer
from model.loop.engine import Engine
from model.sampling.sampling_row import SamplingRow
from model.scheduling.sequence import Sequence
from model.scheduling.speculation import RowCosts, Speculator
from server.hubs.demo import DEMO, demo_folder

TEXTS = Path(__file__).parent / "texts" / "speculation.json"
# Lengths of llama.cpp's lookup: its default, and what its documentation advises for a CPU.
LOOKUPS = {"llama.cpp": 0, "llama.cpp, lookup of 2": 2, "llama.cpp, lookup of 10": 10}


class ToldEngine:
    """An engine whose sampler returns given replies."""

    def __init__(self, folder: Path) -> None:
        self.engine = Engine(EngineConfig(checkpoint_path=str(folder), enable_prefix_caching=False, max_model_len=2048))
        self._speculator = self.engine._speculator
        self._num_requests = 0
        self._reply: list[int] = []
        sampler = self.engine._runner._sampler
        choose = sampler._sample_tokens

        def tell(logits: torch.Tensor, rows: list[SamplingRow]) -> tuple[torch.Tensor, torch.Tensor]:
            _, is_valid = choose(logits, rows)
            last = len(self._reply) - 1
            return torch.tensor([self._reply[min(row.num_output_tokens, last)] for row in rows]), is_valid

        sampler._sample_tokens = tell  # type: ignore[assignment]

    def rate(self, prompt: list[int], reply: list[int], *, guesses: bool) -> float:
        """Tokens a second of a reply, from its first token on."""
        engine = self.engine
        engine._speculator = engine._scheduler._speculator = self._speculator if guesses else None
        self._reply = reply
        self._num_requests += 1
        engine.add_request(greedy_request(self._num_requests, prompt, len(reply)))
        while not (tokens := [token for output in engine.step().outputs for token in output.token_ids]):
            pass
        started = time.perf_counter()
        num_first = len(tokens)
        while engine.has_work():
            tokens += [token for output in engine.step().outputs for token in output.token_ids]
        elapsed = time.perf_counter() - started
        assert tokens == reply
        return (len(reply) - num_first) / elapsed


def load_texts(max_tokens: int) -> list[dict[str, Any]]:
    """The texts as ids of the demo's vocabulary, which splits them as other vocabularies do, if somewhat finer."""
    folder = demo_folder(DEMO)
    assert folder is not None, "the demo's vocabulary comes with the source"
    tokenizer = Tokenizer.from_folder(folder)
    texts: list[dict[str, Any]] = json.loads(TEXTS.read_text())
    for text in texts:
        text["prompt"] = tokenizer.encode(text["prompt"])
        text["reply"] = tokenizer.encode(text["reply"])[:max_tokens]
    return texts


def simulate(row_ms: list[float], max_tokens: int) -> None:
    """Counts steps and guesses, and prints what steps of these times would gain."""
    costs = RowCosts((1, 2, 4, 8, 16)[: len(row_ms)], tuple(row_ms), 0.0)
    for text in load_texts(max_tokens):
        prompt, reply = text["prompt"], text["reply"]
        speculator = Speculator(costs, max(prompt + reply) + 1)
        seq = Sequence(0, "bench", prompt, SamplingParams(max_tokens=len(reply)))
        speculator.start([seq], prompt, [])
        seq.token_ids.append(reply[0])
        num_done, num_steps, spent_ms = 1, 0, 0.0
        while num_done < len(reply):
            drafts = speculator.draft({seq: len(reply) - num_done - 1}, costs.max_num_rows, {}).get(0, [])
            num_right = 0
            while num_right < len(drafts) and drafts[num_right] == reply[num_done + num_right]:
                num_right += 1
            speculator.note(len(drafts), num_right)
            seq.token_ids += reply[num_done : num_done + num_right + 1]
            num_done += num_right + 1
            num_steps += 1
            spent_ms += costs.step_s(1 + len(drafts), 0)
        right = f"{speculator.num_accepted_tokens_total} of {speculator.num_draft_tokens_total} guesses right"
        gain = (len(reply) - 1) * row_ms[0] / spent_ms
        print(f"{text['name']}: {len(reply)} tokens in {num_steps} steps, {right}, {gain:.2f} times as fast")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures everything and returns the figures."""
    told = ToldEngine(random_folder(arguments.shape))
    speculator = told.engine._speculator
    if speculator is None:
        raise SystemExit("nothing is guessed on this device")
    sources: dict[str, Callable[..., float]] = {
        "plain": partial(told.rate, guesses=False),
        "guessing": partial(told.rate, guesses=True),
    }
    if arguments.llama_python:
        peer = LlamaPeer(arguments)
        for name, num_guessed in LOOKUPS.items():
            sources[name] = partial(peer.ask, do="reply", num_guessed=num_guessed)
    rows = []
    for text in load_texts(arguments.max_tokens):
        prompt, reply = text["prompt"], text["reply"]
        rates: dict[str, list[float]] = {name: [] for name in sources}
        for number in range(arguments.rounds):
            for name, measure in sources.items():
                rates[name].append(measure(prompt=prompt, reply=reply))
            latest = {name: round(values[-1], 1) for name, values in rates.items()}
            print(f"{text['name']}, round {number}, tokens/s: {latest}", flush=True)
        ratios = {
            f"to {other}": statistics.median(a / b for a, b in zip(rates["guessing"], rates[other], strict=True))
            for other in sources
            if other != "guessing"
        }
        medians = {name: statistics.median(values) for name, values in rates.items()}
        kind = {"text": text["name"], "copies": text["copies"], "prompt": len(prompt), "reply": len(reply)}
        rows.append({**kind, "tokens_per_s": medians, "ratio": ratios, "rounds": rates})
    stats = told.engine.step().stats
    return {
        "shape": arguments.shape,
        **circumstances(),
        "row_costs": told.engine._runner.row_costs,
        "share_accepted": speculator.num_accepted_tokens_total / max(1, speculator.num_draft_tokens_total),
        "num_steps": stats.num_steps_total,
        "texts": rows,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Speed of one sequence with guesses, without, and of llama.cpp.")
    parser.add_argument("--shape", choices=sorted(random_checkpoint.SHAPES), default="1.8b-int4")
    parser.add_argument("--max-tokens", type=int, default=450, help="of a reply")
    parser.add_argument("--rounds", type=int, default=5, help="measure so often, in turns; medians are reported")
    add_llama_arguments(parser, "q4_0")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--simulate", type=float, nargs="+", metavar="MS", help="only count steps and guesses")
    arguments = parser.parse_args()
    if arguments.simulate:
        simulate(arguments.simulate, arguments.max_tokens)
        return
    figures = run(arguments)
    for row in figures["texts"]:
        print(row["text"], {name: round(ratio, 2) for name, ratio in row["ratio"].items()})
    print_figures(figures, arguments.json)


if __name__ == "__main__":
    main()
