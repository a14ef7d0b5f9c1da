"""Every kernel compiles for sm_80 and sm_90, without a GPU, and what runs in each decode step spills no register."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from server.run_module import module_command
from tests.support.paths import ROOT

# What a program may have at most: sm_80 has 163 KiB for one, sm_90 227.
MAX_SHARED_BYTES = {80: 163 << 10, 90: 227 << 10}


@pytest.mark.parametrize("is_quick", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["quick", "all"])
def test_kernels_compile(tmp_path: Path, is_quick: bool) -> None:
    """In a process of its own: this one interprets kernels."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = module_command("benchmarks.kernel_report", "--json", str(tmp_path / "report.json"))
    command += ["--quick"] if is_quick else []
    print(subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout)
    uses = json.loads((tmp_path / "report.json").read_text())
    assert {use["arch"] for use in uses} == {80, 90}
    assert len({use["kernel"] for use in uses}) >= 10
    spilling = [use for use in uses if use["is_decode"] and use["stack_bytes"]]
    assert not spilling
    assert not [use for use in uses if use["shared_bytes"] > MAX_SHARED_BYTES[use["arch"]]]
