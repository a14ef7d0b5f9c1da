"""Asks the kernel to keep weights, and the cache of long sequences, in huge pages.

A decode step on a CPU is one long read of the weights. With 4 KiB pages the walk through the page tables takes a third
of it (24 layers of the 1.8B shape, 2.4 GB, two cores: 80 ms a pass; in huge pages 57). Most systems only give huge
pages to those who ask ("madvise"), and memory that malloc hands out again has its small pages already, so asking
before the first touch is not enough: MADV_COLLAPSE (Linux 6.1) moves what is there.
"""

from __future__ import annotations

import ctypes
import errno
import sys
import time

_HUGE_PAGE_BYTES = 2 << 20
_PAGE_BYTES = 4096
_MADV_HUGEPAGE = 14
_MADV_COLLAPSE = 25
# The machine has none in one piece, or the container none at all; a further try would push out its other memory.
_NO_MEMORY = (errno.ENOMEM, errno.EBUSY)
_LONG_CONTEXT = 4096
_GROWTH = 1.25
# The most time that a step, and each token of it on top, gives to moving pages: a small part of either's own time.
_STEP_S, _TOKEN_S = 5e-3, 2e-4


def use_huge_pages(address: int, num_bytes: int) -> bool:
    """Moves a range of this process's memory into huge pages, as far as whole ones lie in it.

    Returns:
        Whether the kernel did it. False costs speed and nothing else: not Linux, too old, no memory in one piece.
    """
    # The first advice lets the kernel's own thread finish what the second could not do at once.
    return _advise(address, num_bytes, _MADV_HUGEPAGE, _MADV_COLLAPSE)


class CachePages:
    """Moves a KV cache into huge pages as its sequences become long.

    Behind 8,191 tokens of the 1.8B shape attention then takes 3.1 ms a layer, not 4.3. From the start the pages would
    cost 0.8 s and 1.5 GB as the first tokens are written, one for each head of each layer, and most sequences never
    fill them. So the cache moves when a sequence has become long, and again whenever it is a quarter longer; a little
    in each step, so that nobody waits.
    """

    def __init__(self) -> None:
        self._address, self._covered, self._next, self._end = 0, 0.0, 0, 0

    def follow(self, address: int, num_bytes: int, longest: int, num_tokens: int) -> None:
        """Does a step's share.

        Args:
            address: where the cache begins.
            num_bytes: size of the whole cache.
            longest: the longest context of the step, in tokens.
            num_tokens: how many tokens the step computes: one of many has more time.
        """
        least = _LONG_CONTEXT / _GROWTH
        if address != self._address:
            self._address, self._covered, self._next, self._end = address, least, 0, 0
        if longest * _GROWTH < self._covered:  # the long sequence has ended, and the next one may lie elsewhere
            self._covered = max(longest, least)
        if self._next == self._end and longest >= self._covered * _GROWTH:
            self._covered = longest
            self._next = -(-address // _HUGE_PAGE_BYTES)
            self._end = max(self._next, (address + num_bytes) // _HUGE_PAGE_BYTES)
        deadline = time.perf_counter() + _STEP_S + num_tokens * _TOKEN_S
        while self._next < self._end and time.perf_counter() < deadline:
            # The kernel refuses where nothing has been written yet.
            _advise(self._next * _HUGE_PAGE_BYTES, _HUGE_PAGE_BYTES, _MADV_COLLAPSE)
            is_full = ctypes.get_errno() in _NO_MEMORY
            self._next = self._end if is_full else self._next + 1


def _advise(address: int, num_bytes: int, *advice: int) -> bool:
    """Gives the kernel advice on a range, until it refuses; errno then says why."""
    ctypes.set_errno(0)
    if num_bytes < _HUGE_PAGE_BYTES or sys.platform != "linux":
        return False
    begin = -(-address // _PAGE_BYTES) * _PAGE_BYTES
    length = (address + num_bytes) // _PAGE_BYTES * _PAGE_BYTES - begin
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return not any(madvise(begin, length, each) for each in advice)
