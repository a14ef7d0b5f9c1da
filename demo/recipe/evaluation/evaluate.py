"""Evaluates a checkpoint on tools, wordings and values that training never draws.

`python -m demo.recipe.evaluation.evaluate demo/checkpoint` prints a table. Each case is a conversation from the
held-out side of the corpus, whose last reply the model generates at temperature 0. The tools are new, but their
purposes are not, as in `demo/suites/tools.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from demo.recipe.corpus.document import Document, Turn, encode_prompt
from demo.recipe.corpus.split import HELD_OUT, TRAIN
from demo.recipe.corpus.tools import episodes, math_episodes, react
from demo.recipe.evaluation.chat_kinds import CHAT_KINDS, chat_document
from demo.recipe.evaluation.generate import generate
from demo.recipe.training.export import load_checkpoint
from model.contract.tokenizer import Tokenizer

_CALL = re.compile(r"Action:[ ]*(?P<name>[^\n]*)\nAction Input:[ ]*(?P<arguments>.*)", re.DOTALL)


class Case(NamedTuple):
    """A conversation, the given beginning of its last reply, and the expected rest."""

    category: str
    document: Document
    given: str
    expected: str


class Reply(NamedTuple):
    """A parsed reply: a call, or text."""

    tool: str | None
    arguments: object
    text: str


def read_reply(text: str) -> Reply:
    """Parses a continuation as the server does: a call if there is one, else the final answer."""
    text = text.split("Observation:")[0]
    match = _CALL.search(text)
    if match:
        raw = match["arguments"].strip()
        try:
            return Reply(match["name"].strip(), json.loads(raw), "")
        except ValueError:
            return Reply(match["name"].strip(), raw, "")
    return Reply(None, None, text.split("Final Answer:")[-1].strip())


def _tool_case(kind: str, rng: random.Random) -> Case:
    least, most = {"two calls": (2, 4), "chained": (2, 4), "many tools": (5, 7)}.get(kind, (1, 4))
    episode = react.Episode(rng, HELD_OUT, rng.randint(least, most), purposes=TRAIN)
    make = {
        "call": episodes.single,
        "no call": episodes.no_call,
        "two calls": episodes.two_calls,
        "chained": episodes.chained,
        "conversation": episodes.conversation,
        "observation": episodes.single,
        "many tools": episodes.single,
    }[kind]
    if kind == "observation":
        document = episodes.single(episode, after=1.0)
    else:
        document = math_episodes.math_tools(rng, HELD_OUT) if kind == "call" and rng.random() < 0.05 else make(episode)
    text = document.turns[-1].text
    steps = text.split("\nThought:")
    if kind == "observation" and len(steps) > 1:
        return Case("tools: answer from result", document, steps[0] + "\nThought:", steps[1])
    if kind in ("two calls", "chained") and len(steps) > 1:
        return Case(f"tools: {kind}, second", document, steps[0] + "\nThought:", steps[1])
    return Case("tools: no call" if read_reply(steps[0]).tool is None else f"tools: {kind}", document, "", steps[0])


def _chat_case(category: str, rng: random.Random) -> Case:
    while True:
        document = chat_document(category, rng)
        if document.category == category:
            return Case(f"chat: {category}", document, "", document.turns[-1].text)


def make_cases(per_category: int, seed: int = 20) -> list[Case]:
    """Makes the cases of the evaluation, the same for the same seed.

    Args:
        per_category: cases of each chat category; tool categories have one to five times as many.
        seed: any number; the cases differ from the training's in any case.
    """
    cases = []
    for kind, share in (
        ("call", 5),
        ("no call", 4),
        ("observation", 2),
        ("two calls", 2),
        ("chained", 1),
        ("conversation", 2),
        ("many tools", 1),
    ):
        cases += [_tool_case(kind, random.Random(f"{seed}/{kind}/{i}")) for i in range(per_category * share)]
    for category in CHAT_KINDS:
        cases += [_chat_case(category, random.Random(f"{seed}/{category}/{i}")) for i in range(per_category)]
    return cases


def _is_right(case: Case, text: str) -> bool:
    expected, got = case.expected.strip(), text.strip()
    if case.category == "chat: stories":
        return len(got) > 40 and got[-1:] in ".。"
    if case.category == "chat: lists":
        count = len(re.split(r", |、|\n", expected))
        return len(set(re.split(r", |、|\n", got))) == count
    if case.category == "chat: json":
        return read_json(got) == read_json(expected)
    return got == expected


def read_json(text: str) -> object:
    """Returns the JSON value, or the text itself if it is not JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def score(cases: list[Case], answers: list[str]) -> dict[str, dict[str, float]]:
    """Computes the figures by category.

    Returns:
        For each category `cases` and, as shares, `right`; if calls are expected also `selection` and `arguments`, if
        not, `false_positives`.
    """
    sums: dict[str, defaultdict[str, float]] = {}
    for case, text in zip(cases, answers, strict=True):
        row = sums.setdefault(case.category, defaultdict(float))
        row["cases"] += 1
        if not case.category.startswith("tools"):
            row["right"] += _is_right(case, text)
            continue
        want, got = read_reply(case.expected), read_reply(text)
        if want.tool is None:
            row["false_positives"] += got.tool is not None
            row["right"] += got.tool is None and got.text == want.text
        else:
            row["selection"] += got.tool == want.tool
            exact = got.tool == want.tool and got.arguments == want.arguments
            row["arguments"] += exact
            row["right"] += exact
    return {
        k: {n: v if n == "cases" else round(v / row["cases"], 4) for n, v in row.items()} for k, row in sums.items()
    }


def evaluate_checkpoint(
    folder: Path, per_category: int = 60, device: str = "cpu", seed: int = 20, failures: int = 0
) -> dict[str, Any]:
    """Runs the evaluation on an exported checkpoint.

    Args:
        folder: a checkpoint in the published layout.
        per_category: see `make_cases`.
        device: where to compute.
        seed: see `make_cases`.
        failures: how many wrong answers of each category to print.
    """
    model = load_checkpoint(folder).to(device).eval()
    tokenizer = Tokenizer.from_folder(folder)
    cases = make_cases(per_category, seed)
    prompts = [prompt_ids(case, tokenizer) for case in cases]
    keep = [i for i, p in enumerate(prompts) if len(p) + 160 < model.config.seq_length]
    cases, prompts = [cases[i] for i in keep], [prompts[i] for i in keep]
    with tqdm(total=len(cases), desc="evaluating") as bar:
        answers = generate(model, tokenizer, prompts, progress=bar.update)
    if failures:
        _show_failures(cases, answers, failures)
    return score(cases, answers)


def prompt_ids(case: Case, tokenizer: Tokenizer) -> list[int]:
    """Returns the prompt's token ids, with the given beginning of the reply."""
    return encode_prompt(case.document, tokenizer) + (tokenizer.encode(case.given) if case.given else [])


def _show_failures(cases: list[Case], answers: list[str], number: int) -> None:
    shown: dict[str, int] = defaultdict(int)
    for case, text in zip(cases, answers, strict=True):
        want, got = read_reply(case.expected), read_reply(text)
        right = _is_right(case, text) if not case.category.startswith("tools") else (want == got)
        if right or shown[case.category] >= number:
            continue
        shown[case.category] += 1
        asked: Turn = case.document.turns[-2]
        tools = re.findall(r"should be one of \[(.*?)\]", asked.text)
        question = asked.text.split("Question: ")[-1]
        print(f"--- {case.category} {tools}\n  asked: {question!r}\n  want: {case.expected!r}\n  got:  {text!r}")


def table(report: dict[str, dict[str, float]]) -> str:
    """Returns the report as text."""
    lines = [f"{'category':<28}{'cases':>6}{'right':>8}{'select':>8}{'args':>8}{'false+':>8}"]
    for category, row in report.items():
        cells = [
            f"{row[k] * 100:7.1f}%" if k in row else " " * 8
            for k in ("right", "selection", "arguments", "false_positives")
        ]
        lines.append(f"{category:<28}{row['cases']:>6.0f}{''.join(cells)}")
    return "\n".join(lines)


def main() -> None:
    """Evaluates a checkpoint."""
    p = argparse.ArgumentParser(prog="python -m demo.recipe.evaluation.evaluate", description=__doc__)
    p.add_argument("checkpoint", nargs="?", default="demo/checkpoint")
    p.add_argument("--per-category", type=int, default=60)
    p.add_argument("--seed", type=int, default=20)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--failures", type=int, default=0, help="print so many wrong answers of each category")
    p.add_argument("--json", default="", help="also write the report here")
    args = p.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    report = evaluate_checkpoint(Path(args.checkpoint), args.per_category, args.device, args.seed, args.failures)
    print(table(report))
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
