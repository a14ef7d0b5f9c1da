"""Memory of devices that tell how much they have: CUDA (and ROCm, which torch calls so) and XPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def _memory_of(device: torch.device) -> Any:
    return torch.xpu if device.type == "xpu" else torch.cuda


def available_device_bytes(device: torch.device, share: float) -> int:
    """The share of the whole device, less what is taken, by whomever."""
    memory = _memory_of(device)
    memory.empty_cache()
    free, total = map(int, memory.mem_get_info(device))
    return max(0, int(total * share) - (total - free))


def measure_step_bytes(device: torch.device, run: Callable[[], object]) -> int:
    """What a step takes while it runs. Run twice: the first compiles kernels and lets libraries take workspaces."""
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
