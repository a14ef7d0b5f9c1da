"""The openai package for Node, from npm, against the real server."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.server_process import ServerProcess

FOLDER = Path(__file__).parent / "node"


@pytest.fixture(scope="module")
def results(server: ServerProcess) -> Any:
    """What check.mjs saw; it is run once."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    wanted = json.loads((FOLDER / "package.json").read_text())["dependencies"]
    if not all((FOLDER / "node_modules" / name).exists() for name in wanted):
        install = subprocess.run(
            ["npm", "ci", "--no-audit", "--no-fund"], cwd=FOLDER, capture_output=True, text=True, timeout=120
        )
        if install.returncode:
            pytest.skip(f"npm ci failed: {install.stderr.strip().splitlines()[-1:]}")
    run = subprocess.run(
        ["node", "check.mjs", f"{server.url}/v1"], cwd=FOLDER, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_chat_streamed_and_not_are_the_same(results: Any) -> None:
    assert results["text"]
    assert results["streamed"] == results["text"]
    for usage in (results["usage"], results["streamed_usage"]):
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_tools(results: Any) -> None:
    assert results["call_reason"] == "tool_calls"
    for call in (results["call"], results["streamed_call"]):
        assert call["type"] == "function"
        assert call["id"].startswith("call_")
        assert call["function"]["name"] == "get_weather"
        assert json.loads(call["function"]["arguments"])["city"] in ("Paris", "Rome")
    assert results["call"]["function"] == results["streamed_call"]["function"]
    assert results["answer_reason"] in ("stop", "length", "tool_calls")


def test_completions(results: Any) -> None:
    assert 1 <= results["completion_tokens"] <= 4


def test_errors_map_to_the_packages_classes(results: Any) -> None:
    assert results["errors"]["not_found"] == {
        "kind": "NotFoundError",
        "status": 404,
        "param": "model",
        "code": "model_not_found",
    }
    assert results["errors"]["bad_request"]["kind"] == "BadRequestError"
    assert results["errors"]["bad_request"]["param"] == "temperature"


def test_a_stream_can_be_aborted(results: Any) -> None:
    assert results["aborted_after"] == 3
