"""The published test data and the real vocabulary (a file of the dashscope package, which is not imported)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from model.contract.files.vocabulary import read_ranks
from model.contract.tokenizer import Tokenizer
from tests.support.paths import TEXTS


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    spec = importlib.util.find_spec("dashscope")
    assert spec is not None and spec.submodule_search_locations
    return Tokenizer(read_ranks(Path(spec.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"))


@pytest.fixture(scope="session")
def react_cases() -> dict[str, Any]:
    return json.loads((TEXTS / "react.json").read_text())


@pytest.fixture(scope="session")
def chatml_cases() -> list[dict[str, Any]]:
    return json.loads((TEXTS / "chatml.json").read_text())["cases"]
