"""How much memory the KV cache may have on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.backends import memory
from model.backends.memory import available_cpu_bytes

GIB = 1 << 30


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A machine with 60 GiB to spare, and a container on it that may have 8."""
    paths = {name: tmp_path / name for name in ("_MEMINFO", "_CGROUP_LIMIT", "_CGROUP_USED", "_CGROUP_PARTS")}
    for name, path in paths.items():
        monkeypatch.setattr(memory, name, path)
    paths["_MEMINFO"].write_text(f"MemTotal: 1 kB\nMemAvailable:   {60 << 20} kB\n")
    paths["_CGROUP_LIMIT"].write_text(f"{8 * GIB}\n")
    paths["_CGROUP_USED"].write_text(f"{7 * GIB}\n")
    paths["_CGROUP_PARTS"].write_text(f"anon {4 * GIB}\nactive_file {GIB}\ninactive_file {2 * GIB}\nslab 5\n")
    return paths


def test_pages_of_files_that_were_read_are_not_taken(files: dict[str, Path]) -> None:
    assert available_cpu_bytes() == 4 * GIB


@pytest.mark.parametrize("text", [None, "", "active_file many\n", "one two three\n"])
def test_a_container_that_does_not_tell_its_parts(files: dict[str, Path], text: str | None) -> None:
    files["_CGROUP_PARTS"].unlink() if text is None else files["_CGROUP_PARTS"].write_text(text)
    assert available_cpu_bytes() == GIB


def test_no_limit_of_a_container(files: dict[str, Path]) -> None:
    files["_CGROUP_LIMIT"].write_text("max\n")
    assert available_cpu_bytes() == 60 * GIB
    files["_CGROUP_LIMIT"].unlink()
    assert available_cpu_bytes() == 60 * GIB


def test_a_machine_that_has_less_than_its_container_may(files: dict[str, Path]) -> None:
    files["_MEMINFO"].write_text(f"MemAvailable: {2 << 20} kB\n")
    assert available_cpu_bytes() == 2 * GIB


def test_a_container_above_its_limit_has_nothing(files: dict[str, Path]) -> None:
    files["_CGROUP_USED"].write_text(f"{12 * GIB}\n")
    assert available_cpu_bytes() == 0
