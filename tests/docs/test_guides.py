"""Every example of the README and the guides, run against a real server.

`GUIDES_PYTHON` names a Python that has the packages which are too heavy for the development environment
(litellm, llama-index-llms-openai-like, qwen-agent); without it, examples that need them are skipped.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from server.__main__ import build_parser
from server.config.sources import load_settings
from server.run_module import module_command
from tests.docs.guide import PAGES, Example, examples
from tests.support.paths import ROOT
from tests.support.server_process import ServerProcess
from tools.chat.arguments import split_server_flags

NODE = ROOT / "tests" / "clients" / "node"
HOWS = re.compile(r"run|parsed|yaml|file: \S+|run with: \S+ \S+|run by: \S+|not run: .+")
CODE = ("bash", "python", "javascript", "yaml")
ALL = [example for page in PAGES for example in examples(page)]


def _page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _id(example: Example) -> str:
    return f"{_page_id(example.page)}:{example.line}"


def _of(how: str, *languages: str) -> list[Example]:
    return [example for example in ALL if example.how == how and example.language in languages]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the command in it, as an installation would have it on the PATH."""
    command = tmp_path / "bin" / "qwen-server"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.join(module_command("server"))} "$@"\n')
    command.chmod(0o755)
    return tmp_path


@pytest.fixture
def environment(folder: Path, server: ServerProcess) -> dict[str, str]:
    """Of what examples run in; the server is where the guides expect one."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "QWEN_SERVER_"))}
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**plain, "PATH": path, "PYTHONPATH": str(ROOT), "OPENAI_BASE_URL": f"{server.url}/v1"}


def _check(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_every_example_says_how_it_is_run() -> None:
    assert len(ALL) > 30
    unclear = [_id(example) for example in ALL if example.language in CODE and not HOWS.fullmatch(example.how)]
    assert all((ROOT / how[8:]).exists() for how in {example.how for example in ALL} if how.startswith("run by: "))
    assert not unclear, "put a comment in front: <!-- run -->, <!-- parsed -->, <!-- not run: why -->"


def test_the_command_is_written_in_one_way() -> None:
    """The README says once how it gets onto the PATH."""
    assert not [_id(example) for example in ALL if re.search(r"\S+/qwen-server |-m server\b", example.text)]
    assert [_id(example) for example in ALL if ".venv/bin/activate" in example.text] != []


@pytest.mark.parametrize("page", PAGES, ids=_page_id)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link and not link.startswith("#")]
    assert not [link for link in links if not (page.parent / link.split("#")[0]).exists()]


def _commands(example: Example) -> Iterator[list[str]]:
    for line in example.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and "=" in words[0]:
            words.pop(0)
        if words and words[0].rsplit("/", 1)[-1] == "qwen-server":
            yield words[1:]


@pytest.mark.parametrize("example", _of("parsed", "bash"), ids=_id)
def test_commands_are_understood(example: Example) -> None:
    commands = list(_commands(example))
    assert commands or "make " in example.text
    for words in commands:
        own, server_flags = split_server_flags(words)
        for command in (own, ["serve", "MODEL", *server_flags]):
            arguments = vars(build_parser().parse_args(command))
            if command[0] == "serve":
                arguments.pop("command")
                load_settings(arguments, {}, arguments.pop("config", None))


@pytest.mark.parametrize("page", PAGES, ids=_page_id)
def test_shell_examples(page: Path, server: ServerProcess, folder: Path, environment: dict[str, str]) -> None:
    """One after the other in one folder, as a reader would."""
    found = False
    for example in examples(page):
        if example.how.startswith("file: "):
            (folder / example.how.removeprefix("file: ")).write_text(example.text)
        elif example.how == "run" and example.language == "bash":
            found = True
            script = example.at(server.url).replace("qwen-server bench", f"qwen-server bench --base-url {server.url}")
            command = ["bash", "-euo", "pipefail", "-c", script]
            _check(subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240))
    if not found:
        pytest.skip("no shell examples that are run")


@pytest.mark.parametrize("page", PAGES, ids=_page_id)
def test_python_examples(page: Path, server: ServerProcess, folder: Path, environment: dict[str, str]) -> None:
    """Those of a page share their names, as in a notebook."""
    blocks = [example for example in examples(page) if example.how == "run" and example.language == "python"]
    if not blocks:
        pytest.skip("no Python examples that are run")
    # Lines as on the page, so that a traceback names them.
    lines: list[str] = []
    for example in blocks:
        lines += [""] * (example.line - len(lines)) + example.at(server.url).splitlines()
    _run_python(sys.executable, page, "\n".join(lines), folder, environment)


def _run_python(python: str, page: Path, code: str, folder: Path, environment: dict[str, str]) -> None:
    script = folder / f"{page.stem}.py"
    script.write_text(code + "\n")
    _check(
        subprocess.run([python, str(script)], cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    )


@pytest.mark.parametrize("example", [example for example in ALL if example.needs], ids=_id)
def test_python_examples_with_other_packages(
    example: Example, server: ServerProcess, folder: Path, environment: dict[str, str]
) -> None:
    assert example.needs is not None
    package, version = example.needs
    python = os.environ.get("GUIDES_PYTHON")
    if python is None:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{package} is not installed; last run with {version}")
        python = sys.executable
    del environment["PYTHONPATH"]
    _run_python(python, example.page, example.at(server.url), folder, environment)


@pytest.mark.parametrize("example", _of("run", "javascript"), ids=_id)
def test_node_examples(example: Example, server: ServerProcess, environment: dict[str, str]) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    wanted = re.findall(r'from "([^"]+)"', example.text)
    if not all((NODE / "node_modules" / name).exists() for name in wanted):
        pytest.skip(f"{', '.join(wanted)} for Node are not all installed; tests/clients/test_node.py installs them")
    command = ["node", "--input-type=module", "--eval", example.at(server.url)]
    _check(subprocess.run(command, cwd=NODE, env=environment, capture_output=True, text=True, timeout=200))


@pytest.mark.parametrize("example", _of("yaml", "yaml"), ids=_id)
def test_yaml_examples(example: Example) -> None:
    assert yaml.safe_load(example.text)
