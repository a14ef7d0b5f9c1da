"""What a device can do at best, measured, and how much of the time it works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from tools.doctor.limits import copy_bytes_per_s, matmul_flops_per_s, synchronize

__all__ = ["busy_share", "copy_bytes_per_s", "matmul_flops_per_s", "synchronize"]


def busy_share(run: Callable[[], Any], device: torch.device) -> float | None:
    """The share of the time from the first to the last kernel of `run` in which at least one runs; None on a CPU."""
    if device.type != "cuda":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        synchronize(device)
    kernels = [event for event in profile.events() if event.device_type == DeviceType.CUDA]
    intervals = sorted((event.time_range.start, event.time_range.end) for event in kernels)
    if not intervals:
        return None
    busy, reached = 0.0, intervals[0][0]
    for start, end in intervals:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy / (reached - intervals[0][0])
