"""The version: of whatever a build finds of the history, and of what runs."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from server.__main__ import main
from server.version import read_version, server_version
from tests.support.paths import ROOT
from tests.support.server_process import ServerProcess

setuptools_scm = pytest.importorskip("setuptools_scm")

FILES = ("setup.py", "pyproject.toml", ".gitattributes", ".git_archival.txt")
RELEASED = Version("0.1.0")  # what every build said before there were any versions


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=x", "-c", "user.email=x@x", "-c", "init.defaultBranch=main", "-c", "commit.gpgsign=false")
    command = ["git", *who, "-C", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with this one's way to a version, of two commits and no tag."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    folder = tmp_path / "checkout"
    (folder / "server").mkdir(parents=True)
    (folder / "server" / "__init__.py").touch()
    git(folder, "init", "-q")
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "one")
    git(folder, "commit", "-qm", "two", "--allow-empty")
    return folder


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], tuple[str, Any]]:
    """What a build in a folder finds: the version, and what a `server` package installed from there says."""
    given: dict[str, Any] = {}
    monkeypatch.setattr("setuptools.setup", lambda **words: given.update(words))

    def run(folder: Path) -> tuple[str, Any]:
        runpy.run_path(str(folder / "setup.py"))
        found = str(setuptools_scm.get_version(relative_to=folder / "setup.py", **given["use_scm_version"]))
        installed = folder.parent / "site-packages" / "server"
        installed.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "server" / "build.json", installed)
        return found, read_version(installed)

    return run


def test_without_a_tag_a_later_build_is_newer(checkout: Path, build: Callable[[Path], tuple[str, Any]]) -> None:
    first, told = build(checkout)
    assert told == (first, git(checkout, "rev-parse", "--short=10", "HEAD"))
    git(checkout, "commit", "-qm", "three", "--allow-empty")
    second, _ = build(checkout)
    assert RELEASED < Version(first) < Version(second)
    (checkout / "pyproject.toml").write_text("# changed")
    changed, told = build(checkout)
    assert Version(second) < Version(changed)
    assert told.version == changed


def test_a_tag_is_a_release(checkout: Path, build: Callable[[Path], tuple[str, Any]]) -> None:
    before, _ = build(checkout)
    git(checkout, "tag", "v0.2.0")
    released, told = build(checkout)
    assert (released, told.commit) == ("0.2.0", git(checkout, "rev-parse", "--short=10", "HEAD"))
    git(checkout, "commit", "-qm", "three", "--allow-empty")
    after, _ = build(checkout)
    assert Version(before) < Version(released) < Version(after)
    assert after.startswith("0.2.1.dev1+g")


def test_a_shallow_clone(checkout: Path, build: Callable[[Path], tuple[str, Any]], tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{checkout}", str(clone))
    with pytest.warns(UserWarning, match="shallow"):
        version, told = build(clone)
    assert Version(version) > RELEASED
    assert told.commit == git(checkout, "rev-parse", "--short=10", "HEAD")


@pytest.mark.parametrize("tag", [None, "v0.3.0"])
def test_an_archive(
    tag: str | None, checkout: Path, build: Callable[[Path], tuple[str, Any]], tmp_path: Path
) -> None:
    if tag is not None:
        git(checkout, "tag", tag)
    git(checkout, "archive", "--format=zip", "--prefix=unpacked/", "-o", str(tmp_path / "a.zip"), "HEAD")
    shutil.unpack_archive(tmp_path / "a.zip", tmp_path)
    unpacked = tmp_path / "unpacked"
    version, told = build(unpacked)
    if tag is None:
        assert told.commit == git(checkout, "rev-parse", "--short=10", "HEAD")
        assert Version(version) > RELEASED
        assert version.endswith(f"+g{told.commit[:9]}"), "archives of two commits differ"
    else:
        assert version == "0.3.0"


def test_a_folder_that_nothing_is_known_of(
    checkout: Path, build: Callable[[Path], tuple[str, Any]], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git", ".git_archival.txt"))
    version, told = build(copy)
    assert Version(version) > RELEASED
    assert told == (version, None)


def test_a_checkout_that_runs_tells_its_own_commit(checkout: Path) -> None:
    """Whatever build.json tells, which is of the time when it was installed."""
    server = checkout / "server"
    (server / "build.json").write_text('{"version": "0.2.0.dev7+g0123456", "commit": "g0123456789abc"}')
    git(checkout, "add", "-A")
    git(checkout, "commit", "-qm", "three")
    head = git(checkout, "rev-parse", "--short=10", "HEAD")
    assert read_version(server) == (f"0.2.0.dev7+g{head}", head)
    (checkout / "pyproject.toml").write_text("# changed")
    version, commit = read_version(server)
    assert (version, commit) == (f"0.2.0.dev7+g{head}.dirty", f"{head}-dirty")
    assert Version(version)


def test_the_version_is_told_everywhere(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"qwen-server {server_version()}\n"
    version, commit = server_version()
    assert json.loads(server.get("/version")) == {"version": version, "commit": commit}
    assert json.loads(server.get("/openapi.json"))["info"]["version"] == version
    assert f'qwen:build_info{{commit="{commit or ""}",version="{version}"}} 1.0' in server.get("/metrics")
    assert f"version={version} commit={commit}" in server.log()


def test_the_changelog_knows_what_comes_next() -> None:
    given = (ROOT / "setup.py").read_text()
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = [line.removeprefix("## ") for line in changelog.splitlines() if line.startswith("## ")]
    assert headings[0] == "Unreleased"
    releases = [Version(heading.split()[0]) for heading in headings[1:]]
    assert releases == sorted(releases, reverse=True)
    assert releases[0] < Version(given.split('NEXT_VERSION = "')[1].split('"')[0])
