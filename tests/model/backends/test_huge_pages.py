"""Weights and long sequences in huge pages: what is asked of the kernel, and that the bytes stay what they were."""

from __future__ import annotations

import ctypes
import errno
import sys
from pathlib import Path

import pytest
import torch

from model.backends import huge_pages
from model.backends.huge_pages import CachePages, use_huge_pages


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


def test_a_cache_moves_as_a_sequence_becomes_long_and_keeps_its_bytes() -> None:
    data = torch.empty(48 << 20, dtype=torch.uint8)
    half = len(data) // 2
    data[:half:4096] = 1  # the rest has no pages yet
    probe = torch.ones(8 << 20, dtype=torch.uint8)
    if not use_huge_pages(probe.data_ptr(), probe.nbytes):
        pytest.skip("this kernel does not collapse pages")
    pages, found = CachePages(), [huge_kib()]

    def grown(longest: int) -> int:
        """Huge memory that came with some steps of a context."""
        for _ in range(100):
            pages.follow(data.data_ptr(), data.nbytes, longest, 1000)
        found.append(huge_kib())
        return found[-1] - found[-2]

    assert grown(4095) == 0
    assert 16 << 10 <= grown(4096) <= 28 << 10
    data[half::4096] = 2
    assert grown(5000) == 0, "not yet a quarter longer"
    assert grown(5120) >= 16 << 10
    assert int(data[::4096].sum()) == 3 * (half // 4096)


def test_a_long_sequence_after_a_longer_one_is_followed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def advise(address: int, *advice: int) -> bool:
        tried.append(address)
        return True

    monkeypatch.setattr(huge_pages, "_advise", advise)
    pages = CachePages()
    for longest, num_tries in [(30_000, 4), (29_000, 4), (500, 4), (5000, 8), (5100, 8), (500, 8), (4096, 12)]:
        for _ in range(5):
            pages.follow(2 << 20, 8 << 20, longest, 1000)
        assert len(tried) == num_tries, longest


@pytest.mark.parametrize(("refusal", "num_tries"), [(errno.EINVAL, 4), (errno.ENOMEM, 1), (errno.EBUSY, 1)])
def test_without_memory_the_rest_of_a_cache_stays(
    monkeypatch: pytest.MonkeyPatch, refusal: int, num_tries: int
) -> None:
    """The machine's, or what the container may have; other pages are refused one at a time."""
    tried: list[int] = []

    def refuse(address: int, *arguments: int) -> bool:
        tried.append(address)
        ctypes.set_errno(refusal)
        return False

    monkeypatch.setattr(huge_pages, "_advise", refuse)
    pages = CachePages()
    for _ in range(9):
        pages.follow(2 << 20, 8 << 20, 5000, 1000)
    assert len(tried) == num_tries


def test_a_small_range_is_left_alone() -> None:
    data = torch.zeros(1 << 20, dtype=torch.uint8)
    assert not use_huge_pages(data.data_ptr(), data.nbytes)


def test_nothing_of_it_is_an_error_where_the_kernel_cannot() -> None:
    assert not use_huge_pages(0x1000, 64 << 20)  # nothing is mapped there
