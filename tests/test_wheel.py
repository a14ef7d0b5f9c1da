"""What an installation holds: the server and its demo checkpoint, and nothing that only this repository needs."""

from __future__ import annotations

from pathlib import Path

import pytest

setuptools = pytest.importorskip("setuptools")

from setuptools.config.pyprojecttoml import apply_configuration  # noqa: E402

from tests.support.paths import ROOT  # noqa: E402


@pytest.fixture(scope="module")
def installed() -> set[str]:
    """The paths of the wheel's files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        distribution = setuptools.Distribution({"script_name": "setup.py"})
        build = apply_configuration(distribution, "pyproject.toml").get_command_obj("build_py")
        build.ensure_finalized()
        return {str(Path(path).relative_to(build.build_lib)) for path in build.get_outputs(include_bytecode=False)}


def test_the_demo_checkpoint_is_there_whole(installed: set[str]) -> None:
    needed = {path for path in (ROOT / "demo" / "checkpoint").iterdir() if path.suffix != ".png"}
    assert len(needed) > 4
    assert {str(path.relative_to(ROOT)) for path in needed} <= installed


def test_every_module_of_the_server_is_there(installed: set[str]) -> None:
    for package in ("server", "model", "prompts"):
        assert {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")} <= installed
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "server" / "web").iterdir()} <= installed


def test_recipe_benchmarks_and_tests_are_not(installed: set[str]) -> None:
    assert {path.split("/")[0] for path in installed} == {"server", "model", "prompts", "tools", "demo"}
    assert {path.split("/")[1] for path in installed if path.startswith("demo/")} == {
        "__init__.py", "checkpoint", "random_checkpoint.py",
    }  # fmt: skip
