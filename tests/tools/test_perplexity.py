"""`qwen-server perplexity`: the figures are those of the model's own logits, and what it is told is checked."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.engine_driver import LoadedModel
from tests.support.paths import GOLDEN
from tools.perplexity import run
from tools.perplexity.run import Reader, as_table, default_windows, measure, rows_of

FOLDER = GOLDEN / "ntk_logn_fp32"  # trained at 64 tokens, three layers
IDS = [(17 * i) % 250 + 1 for i in range(160)]


def test_each_row_is_the_model_with_that_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_CHUNK", 48)
    monkeypatch.setattr(run, "_LOGIT_ROWS", 20)
    reader, model = Reader(FOLDER, "float32", "cpu", None), LoadedModel(FOLDER)
    rows = rows_of(reader.config, (16, 32, 64))
    table = measure(reader, [IDS], [40, 160], rows)
    for means, (short, long) in zip(rows, table, strict=True):
        model.config = means.config
        for found, parts in ((short, [IDS[low : low + 40] for low in range(0, 160, 40)]), (long, [IDS])):
            losses = [
                torch.nn.functional.cross_entropy(model.logits(part)[:-1], torch.tensor(part[1:]), reduction="sum")
                for part in parts
            ]
            expected = float(sum(losses)) / sum(len(part) - 1 for part in parts)
            assert math.log(found) == pytest.approx(expected, rel=1e-4), means.name
    assert len({round(long, 6) for _, long in table}) == 4, "beyond the trained length each of them counts"
    assert table[0][0] == table[2][0] != table[3][0], "below it only windows do"


def test_windows_are_shorter_in_lower_layers() -> None:
    config = replace(Reader(FOLDER, "float32", "cpu", None).config, seq_length=2048, num_layers=7)
    assert default_windows(config) == (512, 512, 512, 1024, 1024, 2048, 2048)


def test_the_table() -> None:
    figures = {
        "model": "m", "trained_length": 64, "dtype": "float32", "num_tokens": 9, "lengths": [64, 128],
        "attention_windows": [16], "perplexity": {"none": [1.5, 123456.0]},
    }  # fmt: skip
    assert as_table(figures).endswith("| | 64 | 128 |\n|---|---|---|\n| none | 1.50 | 1e+05 |\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lengths", "1x,zwei"], "is no list of lengths"),
        (["--lengths", "1"], "has nothing to be predicted"),
        (["--attention-window", "1,2"], "one for each of 3 layers"),
        (["--text", __file__, "--lengths", "9999999"], "give more text or lower --lengths"),
    ],
)
def test_what_it_cannot_do_is_a_sentence(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["perplexity", str(FOLDER), "--device", "cpu", *words])
    status: int | str | None
    try:
        status = run.main()
    except SystemExit as end:
        status = end.code
    assert status in (1, 2)
    assert message in capsys.readouterr().err


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--lengths", "1x,100", "--num-pieces", "1", "--device", "cpu", "--json", str(tmp_path / "out.json")]
    monkeypatch.setattr("sys.argv", ["perplexity", str(FOLDER), *words])
    assert run.main() == 0
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures["lengths"] == [64, 100]
    assert capsys.readouterr().out == as_table(figures)
