"""Weights in huge pages: what is asked of the kernel, and that the bytes stay what they were."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from model.backends.huge_pages import use_huge_pages
from model.backends.torch_backend import TorchBackend


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


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5])
def test_few_rows_of_a_large_weight_are_padded_and_cut(num_rows: int) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(4096, 512).bfloat16(), torch.randn(4096).bfloat16()
    linear = TorchBackend(torch.device("cpu")).prepare_linear(weight.clone(), bias)
    linear(torch.randn(3, 512).bfloat16())  # leaves something in the padding
    x = torch.randn(num_rows, 512).bfloat16()
    assert linear(x).shape == (num_rows, 4096)
    torch.testing.assert_close(linear(x), torch.nn.functional.linear(x, weight, bias), rtol=2e-2, atol=0.3)
