"""A vocabulary of the recipe's own, small and quickly made."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.recipe import vocabulary
from model.tokenizer import Tokenizer, read_ranks


@pytest.fixture(scope="session")
def ranks_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary") / "qwen.tiktoken"
    vocabulary.write_ranks(vocabulary.train_vocabulary(num_documents=1000), path)
    return path


@pytest.fixture(scope="session")
def tokenizer(ranks_file: Path) -> Tokenizer:
    return Tokenizer(read_ranks(ranks_file))
