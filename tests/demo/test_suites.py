"""The shipped suites are what their command writes, and nothing of them is trained on."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest

from demo.recipe.corpus.split import HELD_OUT, TRAIN
from demo.recipe.corpus.templates import choose, say
from demo.recipe.corpus.tools import questions, tools
from demo.recipe.corpus.tools.domains import domains_of, trained_lines
from demo.recipe.corpus.tools.react import Episode
from demo.recipe.evaluation import calibration, suites
from model.contract.tokenizer import Tokenizer
from model.quantization.offline.calibration import calibration_samples

FOLDER = Path(suites.__file__).resolve().parents[2] / "suites"


def test_the_command_writes_the_shipped_files() -> None:
    made = suites.make_suites()
    assert {path.stem for path in FOLDER.glob("*.jsonl")} == made.keys()
    for name, cases in made.items():
        lines = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == cases


def test_the_wordings_of_met_purposes_are_kept_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every purpose has wordings of each kind that training never draws, and the suite is made of those."""
    for key, domain in domains_of(TRAIN).items():
        for mark, lines in domain.lines.items():
            assert lines[-1] not in trained_lines(lines), (key, mark)
    described: list[str] = []
    asked: list[str] = []
    monkeypatch.setattr(tools, "say", lambda text, rng: described.append(text) or say(text, rng))
    monkeypatch.setattr(questions, "choose", lambda text, *rest: asked.append(text) or choose(text, *rest))
    for seed in range(60):
        episode = Episode(random.Random(seed), HELD_OUT, 1, generic=0.0, purposes=TRAIN)
        domain = episode.tools[0].domain
        assert domain.key in domains_of(TRAIN)
        episode.request()
        assert domain.lines["d" if episode.lang == "en" else "D"][-1] in described
        assert asked.pop() == domain.lines["q" if episode.lang == "en" else "Q"][-1]
        assert not {*described} & {line for mark in "dD" for line in trained_lines(domain.lines[mark])}
        described.clear()


def test_purposes_that_training_never_meets_are_nobody_else_s() -> None:
    unmet = {
        tool.domain.key
        for seed in range(60)
        for tool in Episode(random.Random(seed), HELD_OUT, 3, generic=0.0).tools
    }
    assert len(unmet) > 10
    assert not unmet & domains_of(TRAIN).keys()


def test_another_seed_makes_other_cases() -> None:
    ours, theirs = suites.make_chat_suite(1), suites.make_chat_suite(2)
    same = {json.dumps(case["messages"]) for case in ours} & {json.dumps(case["messages"]) for case in theirs}
    assert len(theirs) == len(ours)
    assert len(same) < len(ours) // 2


def test_calibration_text_is_read_by_the_quantiser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "text.jsonl"
    monkeypatch.setattr(sys, "argv", ["calibration", str(out), "--documents", "5"])
    calibration.main()
    tokenizer = Tokenizer({bytes([value]): value for value in range(256)})
    pieces = calibration_samples(tokenizer, out, num_samples=4, sample_length=64, seed=0)
    assert pieces.shape == (4, 64)
    assert len(out.read_text().splitlines()) == 5


def test_steps_are_read_back() -> None:
    text = (
        'Thought: I should use the f tool.\nAction: f\nAction Input: {"a": "x"}\nObservation: 3: "b"'
        "\nThought: I now know the final answer.\nFinal Answer: It is 3."
    )
    call, final = suites.read_steps(text)
    assert (call.name, call.arguments, call.observation) == ("f", {"a": "x"}, '3: "b"')
    assert (final.name, final.answer) == (None, "It is 3.")
