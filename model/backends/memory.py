"""How much memory this process may still take: of the machine or its container, and of devices that tell."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_MEMINFO = Path("/proc/meminfo")
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_CGROUP_USED = Path("/sys/fs/cgroup/memory.current")
_CGROUP_PARTS = Path("/sys/fs/cgroup/memory.stat")


def available_cpu_bytes() -> int:
    """Bytes available without swapping, by the machine's figure or its container's; where neither says, half of all."""
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


def _memory_of(device: torch.device) -> Any:
    """Torch's module about such devices; ROCm's are "cuda" to it."""
    return torch.xpu if device.type == "xpu" else torch.cuda


def available_device_bytes(device: torch.device, share: float) -> int:
    """A share of the whole device's bytes, less what is taken, by this process or others."""
    memory = _memory_of(device)
    memory.empty_cache()
    free, total = map(int, memory.mem_get_info(device))
    return max(0, int(total * share) - (total - free))


def measure_step_bytes(device: torch.device, run: Callable[[], object]) -> int:
    """Bytes that a step takes. It is run twice: the first compiles kernels and lets libraries take workspaces."""
    memory = _memory_of(device)
    run()
    memory.synchronize(device)
    memory.empty_cache()
    before = memory.memory_allocated(device)
    memory.reset_peak_memory_stats(device)
    run()
    memory.synchronize(device)
    # Reserved, not allocated: what fragmentation costs is taken too.
    num_bytes = int(memory.max_memory_reserved(device) - before)
    memory.empty_cache()
    return num_bytes
