"""`make`, as a newcomer meets it: what it says while it installs, and what it does without a Python that will do.

The interpreters here are scripts that say what they are and note what they are asked; nothing is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
# A Python of some version, with or without venv; `-m venv DIR` makes another one there, which stands for pip too.
PYTHON = """#!/bin/sh
echo "$(basename "$0") $*" >> {log}
case "$*" in
  *"version_info < (3, 11)"*) exit {too_old} ;;
  *"import venv, ensurepip"*) exit {no_venv} ;;
  --version) echo "Python 3.10.12" ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp {server} "$3/bin/qwen-server" ;;
esac
"""
UV = """#!/bin/sh
echo "uv $*" >> {log}
for folder; do :; done
mkdir -p "$folder/bin" && cp {python} "$folder/bin/python"
"""


class Machine:
    """A folder with programs of our own that stand first on the PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.log.write_text("")
        self.script("server", f'#!/bin/sh\necho "qwen-server $*" >> {self.log}\n')

    def script(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def python(self, name: str = "python3", *, too_old: bool = False, no_venv: bool = False) -> Path:
        server = self.folder / "server"
        text = PYTHON.format(log=self.log, too_old=int(too_old), no_venv=int(no_venv), server=server)
        return self.script(name, text)

    def make(self, *words: str, status: int = 0) -> str:
        env = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
        # Only what the recipes need, so that no other Python and no uv is found.
        for tool in ("sh", "sed", "mkdir", "cp", "touch", "basename", "make"):
            link = self.folder / tool
            found = shutil.which(tool)
            if found and not link.exists():
                link.symlink_to(found)
        env["PATH"] = str(self.folder)
        command = [str(self.folder / "make"), "-C", str(ROOT), "--no-print-directory", f"VENV={self.folder / 'venv'}"]
        done = subprocess.run([*command, *words], env=env, capture_output=True, text=True)
        assert bool(done.returncode) == bool(status), done.stdout + done.stderr
        return done.stdout + done.stderr

    def asked(self) -> str:
        return self.log.read_text()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_it_says_what_it_does_and_serves(machine: Machine) -> None:
    machine.python()
    said = machine.make("serve", "PORT=8123", "HOST=0.0.0.0", "ARGS=--seed 7", "MODEL=/models/mine")
    steps = [line for line in said.splitlines() if line[:2] in ("1/", "2/", "3/")]
    assert [step[:4] for step in steps] == ["1/3 ", "2/3 ", "3/3 "]
    assert all("GB" in step for step in steps[1:])
    assert "--quiet" not in machine.asked(), "pip shows how far it is"
    assert "qwen-server serve /models/mine --host 0.0.0.0 --port 8123 --seed 7" in machine.asked()
    again = machine.make("serve")
    assert again == ""
    assert "qwen-server serve qwen-demo --host 127.0.0.1 --port 8000" in machine.asked().splitlines()[-1]


def test_without_cuda_on_demand(machine: Machine) -> None:
    machine.python()
    assert "without CUDA" in machine.make("install", "CPU=1")
    (installed,) = [line for line in machine.asked().splitlines() if "torch==" in line]
    assert installed.endswith("+cpu") and "--extra-index-url https://download.pytorch.org/whl/cpu" in installed


def test_an_old_python_is_named_with_the_way_out(machine: Machine) -> None:
    machine.python(too_old=True)
    said = machine.make("install", status=2)
    assert "needs Python 3.11 or newer; python3 is Python 3.10.12" in said
    assert "python3.11-venv" in said and "uv" in said
    assert not (machine.folder / "venv").exists()


def test_a_newer_python_beside_it_is_taken(machine: Machine) -> None:
    machine.python(too_old=True)
    machine.python("python3.12")
    machine.make("install")
    assert "python3.12 -m venv" in machine.asked()


def test_a_python_without_venv_is_named_with_the_way_out(machine: Machine) -> None:
    machine.python(no_venv=True)
    said = machine.make("install", status=2)
    assert "python3 has no venv module" in said
    assert "sudo apt install python3-venv" in said and "uv" in said


@pytest.mark.parametrize("lack", ["too_old", "no_venv"])
def test_uv_brings_a_python(lack: str, machine: Machine) -> None:
    python = machine.python(**{lack: True})
    machine.script("uv", UV.format(log=machine.log, python=python))
    said = machine.make("install")
    assert "uv makes the environment" in said
    assert f"uv venv --seed --python 3.12 {machine.folder / 'venv'}" in machine.asked()
    assert "-m pip install" in machine.asked()


def test_help_names_what_can_be_set(machine: Machine) -> None:
    machine.python()
    for words in ((), ("help",)):
        said = machine.make(*words)
        assert all(f"{name}=" in said for name in ("MODEL", "PORT", "HOST", "ARGS", "CPU"))
