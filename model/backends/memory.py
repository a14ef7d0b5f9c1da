"""How much memory this process may still take: the machine's own figure, or the container's if that is less."""

from __future__ import annotations

import os
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_CGROUP_USED = Path("/sys/fs/cgroup/memory.current")
_CGROUP_PARTS = Path("/sys/fs/cgroup/memory.stat")


def available_cpu_bytes() -> int:
    """Bytes available without swapping; on systems that do not say, half of the physical memory."""
    available = _meminfo_available()
    if available is None:
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    try:
        limit = int(_CGROUP_LIMIT.read_text())
        available = min(available, limit - int(_CGROUP_USED.read_text()) + _cgroup_file_cache())
    except (OSError, ValueError):
        pass  # no cgroup v2, or its limit is "max"
    return max(0, available)


def _cgroup_file_cache() -> int:
    """Bytes counted as used that the kernel gives up when asked: the pages of files that were read, as the weights."""
    try:
        parts = dict(line.split() for line in _CGROUP_PARTS.read_text().splitlines())
        return int(parts["active_file"]) + int(parts["inactive_file"])
    except (OSError, ValueError, KeyError):
        return 0


def _meminfo_available() -> int | None:
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
