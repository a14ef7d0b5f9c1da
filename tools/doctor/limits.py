"""Measures what a device can do at best: bytes a second of copies and reads, operations a second of a product."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

_MAX_COPY_BYTES = {"cpu": 256 << 20}
_DEFAULT_MAX_COPY_BYTES = 4 << 30
_READ_ROWS = 8192
_MATMUL_SIZE = {"cpu": 1024}
_DEFAULT_MATMUL_SIZE = 8192


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def best_seconds(run: Callable[[], Any], device: torch.device, repeats: int = 10) -> float:
    """Returns the least time that `run` took, the first call left out."""
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
    """Measures a copy of an array far larger than any cache: bytes read and written a second."""
    num_bytes = _MAX_COPY_BYTES.get(device.type, _DEFAULT_MAX_COPY_BYTES)
    if device.type in ("cuda", "xpu"):
        num_bytes = min(num_bytes, getattr(torch, device.type).mem_get_info(device)[0] // 4)
    source = torch.ones(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / best_seconds(lambda: target.copy_(source), device)


def read_bytes_per_s(device: torch.device) -> float:
    """Measures the product of such an array with one row, a decode step's best case: bytes read a second."""
    num_bytes = _MAX_COPY_BYTES.get(device.type, 1 << 30)
    matrix = torch.ones(_READ_ROWS, num_bytes // 4 // _READ_ROWS, device=device)
    row = torch.ones(matrix.shape[1], device=device)
    return num_bytes / best_seconds(lambda: matrix.mv(row), device)


def matmul_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Measures a large product of random matrices: operations a second."""
    size = _MATMUL_SIZE.get(device.type, _DEFAULT_MATMUL_SIZE)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / best_seconds(lambda: torch.mm(a, b), device)
