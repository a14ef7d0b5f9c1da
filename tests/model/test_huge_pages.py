"""Weights in huge pages: what is asked of the kernel, and that the bytes stay what they were."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from model.backends.huge_pages import use_huge_pages


def huge_kib() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages:"))


def test_a_large_range_moves_and_keeps_its_bytes() -> None:
    data = torch.arange(16 << 20, dtype=torch.uint8)
    before = huge_kib() if sys.platform == "linux" else 0
    if not use_huge_pages(data.data_ptr(), data.nbytes):
        pytest.skip("this kernel does not collapse pages")
    assert torch.equal(data, torch.arange(16 << 20, dtype=torch.uint8))
    assert huge_kib() - before >= 12 << 10


def test_a_small_range_is_left_alone() -> None:
    data = torch.zeros(1 << 20, dtype=torch.uint8)
    assert not use_huge_pages(data.data_ptr(), data.nbytes)


def test_nothing_of_it_is_an_error_where_the_kernel_cannot() -> None:
    assert not use_huge_pages(0x1000, 64 << 20)  # nothing is mapped there
