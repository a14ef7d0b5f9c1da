"""Which product reads a weight faster when there is one row: cuBLAS's or our own. Timed once a shape, at load."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable
from typing import Any

import torch

from model.backends.base import LinearKernel
from model.backends.cuda.kernels.row_matmul import row_matmul

logger = logging.getLogger(__name__)

# Written between two timings, so that no weight is found in the L2 cache.
_FLUSH_BYTES = 256 << 20
_REPEATS = 9

Shape = tuple[int, int, torch.dtype, bool, bool]


class LinearChoice:
    """Makes products that take the faster kernel for one row, and cuBLAS for more.

    Args:
        time_us: microseconds that a call takes on the device, its operands not in the cache.
    """

    def __init__(self, time_us: Callable[[Callable[[], object]], float]) -> None:
        self._time_us = time_us
        self._is_ours: dict[Shape, bool] = {}

    def choose(
        self, library: LinearKernel, weight: torch.Tensor, bias: torch.Tensor | None, result: torch.dtype
    ) -> LinearKernel:
        """Returns a product with a weight.

        Args:
            library: cuBLAS's.
            weight: [N, K], contiguous.
            bias: [N] or None.
            result: dtype of the result.
        """
        shape = (*weight.shape, weight.dtype, bias is not None, result == weight.dtype)
        if shape not in self._is_ours:
            self._is_ours[shape] = self._is_ours_faster(library, weight, bias, result)
        if not self._is_ours[shape]:
            return library

        def apply(x: torch.Tensor) -> torch.Tensor:
            if len(x) == 1 and x.is_contiguous():
                return row_matmul(x, weight, bias, result)
            return library(x)

        return apply

    def _is_ours_faster(
        self, library: LinearKernel, weight: torch.Tensor, bias: torch.Tensor | None, result: torch.dtype
    ) -> bool:
        x = torch.randn(1, weight.shape[1], dtype=torch.float32, device=weight.device).to(weight.dtype)
        ours_us = self._time_us(lambda: row_matmul(x, weight, bias, result))
        library_us = self._time_us(lambda: library(x))
        bytes_per_us = weight.nbytes / min(ours_us, library_us)
        logger.info(
            "one row times %d x %d: ours %.1f us, cuBLAS %.1f us; %.0f GB/s at best",
            *weight.shape,
            ours_us,
            library_us,
            bytes_per_us / 1e3,
        )
        return ours_us < library_us


def time_us_on_device(device: torch.device) -> Callable[[Callable[[], object]], float]:
    """Returns a `time_us` for `LinearChoice` that uses the device's own clock."""

    def time_us(run: Callable[[], object]) -> float:
        flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device)
        run()
        times = []
        for _ in range(_REPEATS):
            flush.zero_()
            marks: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
            marks[0].record()
            run()
            marks[1].record()
            marks[1].synchronize()
            times.append(marks[0].elapsed_time(marks[1]) * 1e3)
        return float(statistics.median(times))

    return time_us
