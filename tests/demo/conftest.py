"""The vocabulary that ships; one that a file's tests learn takes its place there."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.contract.files.vocabulary import read_ranks
from model.contract.tokenizer import Tokenizer
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def ranks_file() -> Path:
    return ROOT / "demo" / "checkpoint" / "qwen.tiktoken"


@pytest.fixture(scope="module")
def tokenizer(ranks_file: Path) -> Tokenizer:
    return Tokenizer(read_ranks(ranks_file))
