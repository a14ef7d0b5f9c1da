"""The shipped suites are what their command writes, and nothing of them is trained on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from demo.recipe import calibration, suites
from model.quantization.calibration import calibration_samples
from model.tokenizer import Tokenizer

FOLDER = Path(suites.__file__).resolve().parents[1] / "suites"


def test_the_command_writes_the_shipped_files() -> None:
    for name, cases in (("tools", suites.make_tools_suite()), ("chat", suites.make_chat_suite())):
        lines = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == cases


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
