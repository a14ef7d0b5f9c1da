"""The GPU day's command, on tiny shapes and a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gpu_day import day, table
from benchmarks.gpu_day.__main__ import main
from benchmarks.gpu_day.day import Part, run_day
from server.run_module import module_command


def python(code: str) -> list[str]:
    return [module_command("x")[0], "-c", code]


@pytest.mark.slow
def test_a_small_day(tmp_path: Path) -> None:
    """Every kind of part, and the table that is made of it."""
    results = tmp_path / "RESULTS.md"
    results.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    arguments = ["--small", "--device", "cpu", "--folder", str(tmp_path / "day"), "--results", str(results)]
    assert main([*arguments, "--minutes", "5"]) == 0
    text = results.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    for row in ("| memory | done |", "| tiny sampled | 1 |", "| tiny sampled | 2 |"):
        assert row in text
    again = text
    assert main([*arguments, "--minutes", "0"]) == 0  # all is done: nothing is begun
    assert results.read_text() == again


@pytest.mark.slow
def test_the_part_over_http(tmp_path: Path) -> None:
    part = Part(
        "http",
        120,
        module_command(
            "benchmarks.gpu_day.http", "--device", "cpu", "--json", "{json}", "--concurrency", "2", "--max-tokens", "4"
        ),
    )
    assert run_day([part], tmp_path, 5.0, None) == 0
    text = table.table(tmp_path)
    assert "| streams over HTTP" in text
    assert "\n| 2 | " in text


def test_what_fails_hangs_or_has_no_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is told, none ends the day, and the next call goes on with what was not begun."""
    parts = [
        Part("fails", 60, python("print('why'); raise SystemExit(3)")),
        Part("hangs", 0.5, python("import time; time.sleep(60)")),
        Part("writes", 60, python("open(r'{json}', 'w').write('[1, 2]')")),
    ]
    assert run_day(parts, tmp_path, 1.0, None) == 2
    assert "why" in json.loads((tmp_path / "fails.json").read_text())["output"]
    assert json.loads((tmp_path / "writes.json").read_text())["figures"] == [1, 2]
    later = Part("later", 60, python("pass"))
    assert run_day([*parts, later], tmp_path, 0.0, None) == 3
    assert run_day([*parts, later], tmp_path, 1.0, None) == 2
    said = capsys.readouterr().out
    assert "fails: failed with status 3" in said
    assert "hangs: out of time" in said
    assert "later: no time left" in said and "later: done" in said


def test_the_table_tells_what_tests_said(tmp_path: Path) -> None:
    said = "..1 failed\n.bf16: top-1 agreement 0.9811\n2 failed, 340 passed, 60 skipped in 67.3s\n"
    part = {"name": "x", "status": 1, "seconds": 67.3, "output": said, "figures": None}
    for name in ("tests", "agreement"):
        (tmp_path / f"{name}.json").write_text(json.dumps(part))
    text = table.table(tmp_path)
    assert "| tests | status 1, 2 failed, 340 passed, 60 skipped | 67.3 |" in text
    assert "- bf16: top-1 agreement 0.9811" in text


def test_the_real_parts_name_what_exists() -> None:
    for part in day.parts("cuda", is_small=False):
        tests = [word for word in part.command if word.startswith("tests/")]
        assert all((day.ROOT / test.split("::")[0]).exists() for test in tests)
        for test in tests:
            file, _, name = test.partition("::")
            assert not name or f"def {name}(" in (day.ROOT / file).read_text()
