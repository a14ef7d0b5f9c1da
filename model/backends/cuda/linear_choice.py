"""Which product reads a weight faster when there is one row: cuBLAS's or our own.

The two round differently, so which one serves is timed once in the life of a device, not of a process: the choice is
kept, and two starts answer alike. Where nothing can be kept cuBLAS serves, untimed.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from model.backends.base import LinearKernel
from model.backends.cuda.device_faults import one_line, require_living_device
from model.backends.cuda.kernels.row_matmul import row_matmul
from model.backends.cuda.notes import Notes

logger = logging.getLogger(__name__)

# Written between two timings, so that no weight is found in the L2 cache.
_FLUSH_BYTES = 256 << 20
_REPEATS = 9

_SECTION = "one row, ours in us, cuBLAS in us"


class _Product(NamedTuple):
    """What two products of a shape are timed with: a weight of it."""

    library: LinearKernel
    weight: torch.Tensor
    bias: torch.Tensor | None
    result: torch.dtype


class LinearChoice:
    """Makes products that take the faster kernel for one row, and cuBLAS for more.

    Args:
        time_us: microseconds that a call takes on the device, its operands not in the cache.
        notes: where choices are kept.
    """

    def __init__(self, time_us: Callable[[Callable[[], object]], float], notes: Notes) -> None:
        self._time_us = time_us
        self._notes = notes
        self._undecided: dict[str, _Product] = {}
        self._ours: set[str] = set()

    def choose(
        self, library: LinearKernel, weight: torch.Tensor, bias: torch.Tensor | None, result: torch.dtype
    ) -> LinearKernel:
        """Returns a product with a weight; cuBLAS's until `decide` is called.

        Args:
            library: cuBLAS's.
            weight: [N, K], contiguous.
            bias: [N] or None.
            result: dtype of the result.
        """
        name = _shape_name(weight, bias, result)
        self._undecided.setdefault(name, _Product(library, weight, bias, result))
        ours = self._ours

        def apply(x: torch.Tensor) -> torch.Tensor:
            if len(x) == 1 and name in ours and x.is_contiguous():
                return row_matmul(x, weight, bias, result)
            return library(x)

        return apply

    def decide(self) -> None:
        """Times the shapes that no earlier start has timed. Called when our kernel is known to work."""
        for name, product in self._undecided.items():
            times = self._notes.read(_SECTION, name)
            if not _are_times(times):
                try:
                    times = self._notes.keep(_SECTION, name, self._timed(product)) if self._notes.can_keep() else None
                except Exception as error:  # a shape that our kernel cannot be compiled for
                    require_living_device(product.weight.device, error)
                    logger.warning("one row times %s: cuBLAS, for ours fails: %s", name, one_line(error))
                    continue
            if times is None:
                logger.warning(
                    "%s cannot be written, so cuBLAS multiplies single rows: timings must be kept for two starts to "
                    "agree; set TRITON_CACHE_DIR to a folder that stays",
                    self._notes.path,
                )
                break
            ours_us, library_us = times
            if ours_us < library_us:
                self._ours.add(name)
            logger.info(
                "one row times %s: ours %.1f us, cuBLAS %.1f us; %.0f GB/s at best",
                name,
                ours_us,
                library_us,
                product.weight.nbytes / min(times) / 1e3,
            )
        self._undecided.clear()

    def _timed(self, product: _Product) -> list[float]:
        library, weight, bias, result = product
        x = torch.randn(1, weight.shape[1], dtype=torch.float32, device=weight.device).to(weight.dtype)
        runs = (lambda: row_matmul(x, weight, bias, result), lambda: library(x))
        return [round(self._time_us(run), 2) for run in runs]


def _shape_name(weight: torch.Tensor, bias: torch.Tensor | None, result: torch.dtype) -> str:
    dtypes = " to ".join(str(dtype).removeprefix("torch.") for dtype in dict.fromkeys((weight.dtype, result)))
    return f"{weight.shape[0]} x {weight.shape[1]} {dtypes}{'' if bias is None else ' with a bias'}"


def _are_times(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(x, float | int) and x > 0 for x in value)


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
