"""What a device can do at best, measured: bytes a second that a copy moves, operations a second of a large product."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_seconds(run: Callable[[], Any], device: torch.device, repeats: int = 10) -> float:
    """The least time that `run` took, the first call left out."""
    run()
    synchronize(device)
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best


def copy_bytes_per_s(device: torch.device) -> float:
    """Bytes read and written a second by a copy of an array far larger than any cache."""
    num_bytes = 4 << 30 if device.type == "cuda" else 256 << 20
    source = torch.ones(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / best_seconds(lambda: target.copy_(source), device)


def matmul_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large product of random matrices."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / best_seconds(lambda: torch.mm(a, b), device)


def busy_share(run: Callable[[], Any], device: torch.device) -> float | None:
    """The share of the time from the first to the last kernel of `run` in which at least one runs; None on a CPU."""
    if device.type != "cuda":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        synchronize(device)
    kernels = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    intervals = sorted((event.time_range.start, event.time_range.end) for event in kernels)
    if not intervals:
        return None
    busy, reached = 0.0, intervals[0][0]
    for start, end in intervals:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy / (reached - intervals[0][0])
