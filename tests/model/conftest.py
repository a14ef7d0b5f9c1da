"""Checkpoints that several tests of the engine's rooms share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from demo.random_checkpoint import Shape, write

TINY = Shape(num_layers=2, hidden_size=32, num_heads=2, intermediate_size=64, vocab_size=300, seq_length=64)

WIDE = Shape(num_layers=2, hidden_size=128, num_heads=2, intermediate_size=512, vocab_size=512, seq_length=64)


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """Each test draws the same numbers in each run: bounds of rounding errors hold for all of them or for none."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 checkpoint that runs a step in a millisecond; NTK and LogN on, seq_length 64."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    write(folder, TINY, seed=1)
    return folder


@pytest.fixture(scope="session")
def wide_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 checkpoint whose linears have inputs of 128 and 256: whole groups, and whole blocks of the kernels."""
    folder = tmp_path_factory.mktemp("checkpoints") / "wide"
    write(folder, WIDE, seed=2)
    return folder
