"""The doctor on a real device: it finds all kernels well, and its table is the first thing to read of a new one."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from model.backends.cuda.operations import KERNELS
from tools.doctor import __main__ as doctor
from tools.doctor.text import as_text
from tools.memory.published_shapes import published_shape


@pytest.mark.parametrize(("name", "is_given"), [("qwen-7b", False), ("qwen-1.8b-int8", True)])
def test_all_is_well(
    name: str, is_given: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = published_shape(name)
    assert config is not None
    words = ["doctor", "--config", json.dumps(asdict(config)), "--shape", name, "--device", "cuda", "--json"]
    monkeypatch.setattr("sys.argv", words + ["--given"] * is_given)
    doctor.main()
    report = json.loads(capsys.readouterr().out)
    print(as_text(report))
    assert report["exam_failure"] is None
    assert {kernel["name"] for kernel in report["kernels"]} == set(KERNELS)
    for kernel in report["kernels"]:
        assert kernel["failure"] is None
        assert kernel["time_us"] is not None or kernel["name"] == "make_decode_inputs"
    assert report["limits"]["read_bytes_per_s"] > 1e11
