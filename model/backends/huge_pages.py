"""Asks the kernel to keep weights in huge pages.

A decode step on a CPU is one long read of the weights. With 4 KiB pages the walk through the page tables takes a third
of it (24 layers of the 1.8B shape, 2.4 GB, two cores: 80 ms a pass; in huge pages 57). Most systems only give huge
pages to those who ask ("madvise"), and memory that malloc hands out again has its small pages already, so asking
before the first touch is not enough: MADV_COLLAPSE (Linux 6.1) moves what is there.
"""

from __future__ import annotations

import ctypes
import sys

_HUGE_PAGE_BYTES = 2 << 20
_PAGE_BYTES = 4096
_MADV_HUGEPAGE = 14
_MADV_COLLAPSE = 25


def use_huge_pages(address: int, num_bytes: int) -> bool:
    """Moves a range of this process's memory into huge pages, as far as whole ones lie in it.

    Args:
        address: of the first byte.
        num_bytes: of the range; what is smaller than a huge page is left alone.

    Returns:
        Whether the kernel did it. False costs speed and nothing else: not Linux, too old, no memory in one piece.
    """
    if num_bytes < _HUGE_PAGE_BYTES or sys.platform != "linux":
        return False
    begin = -(-address // _PAGE_BYTES) * _PAGE_BYTES
    length = (address + num_bytes) // _PAGE_BYTES * _PAGE_BYTES - begin
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    # The first lets the kernel's own thread finish what the second could not do at once.
    return not any(madvise(begin, length, advice) for advice in (_MADV_HUGEPAGE, _MADV_COLLAPSE))
