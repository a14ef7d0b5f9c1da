"""Chooses the product that reads a weight faster when there are up to four rows: cuBLAS's or our own.

The two round differently, so they are timed once in the life of a device, not of a process: the choice is kept, and two
starts answer alike. Where nothing can be kept cuBLAS serves, untimed.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from model.backends.base import LinearKernel
from model.backends.cuda.device_faults import one_line, require_living_device
from model.backends.cuda.kernels.launch import next_power_of_2
from model.backends.cuda.kernels.matmul.row_matmul import MAX_ROWS, row_matmul
from model.backends.cuda.notes import Notes

logger = logging.getLogger(__name__)

# Written between two timings, so that no weight is found in the L2 cache.
_FLUSH_BYTES = 256 << 20
_REPEATS = 9

# The section of the notes that keeps the times of so many rows; a number in between uses those of the next.
_SECTIONS = {
    1: "one row, ours in us, cuBLAS in us",
    2: "2 rows, ours in us, cuBLAS in us",
    4: "4 rows, ours in us, cuBLAS in us",
}


class _Product(NamedTuple):
    """A weight, for the two products of its shape to be timed with."""

    library: LinearKernel
    weight: torch.Tensor
    bias: torch.Tensor | None
    result: torch.dtype


class LinearChoice:
    """Makes products that take the faster kernel for up to four rows, and cuBLAS for more.

    Args:
        time_us: returns the microseconds that a call takes on the device, its operands not in the cache.
        notes: keep the choices.
    """

    def __init__(self, time_us: Callable[[Callable[[], object]], float], notes: Notes) -> None:
        self._time_us = time_us
        self._notes = notes
        self._undecided: dict[str, _Product] = {}
        self._ours: set[tuple[str, int]] = set()

    def choose(
        self, library: LinearKernel, weight: torch.Tensor, bias: torch.Tensor | None, result: torch.dtype
    ) -> LinearKernel:
        """Returns a product with a weight; cuBLAS's until `decide` is called.

        Args:
            library: cuBLAS's product.
            weight: [N, K], contiguous.
            bias: [N] or None.
            result: dtype of the result.
        """
        name = _shape_name(weight, bias, result)
        self._undecided.setdefault(name, _Product(library, weight, bias, result))
        ours = self._ours

        def apply(x: torch.Tensor) -> torch.Tensor:
            if len(x) <= MAX_ROWS and (name, next_power_of_2(len(x))) in ours and x.is_contiguous():
                return row_matmul(x, weight, bias, result)
            return library(x)

        return apply

    def decide(self) -> None:
        """Times the shapes that no earlier start has timed. Called when our kernel is known to work."""
        tasks = [(num_rows, name) for name in self._undecided for num_rows in _SECTIONS]
        for num_rows, name in tasks:
            product = self._undecided[name]
            try:
                times = self._times(num_rows, name, product)
            except Exception as error:  # our kernel may not compile for a shape
                require_living_device(product.weight.device, error)
                logger.warning("%d rows times %s: cuBLAS, for ours fails: %s", num_rows, name, one_line(error))
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
                self._ours.add((name, num_rows))
            logger.info(
                "%d rows times %s: ours %.1f us, cuBLAS %.1f us; %.0f GB/s at best",
                num_rows,
                name,
                ours_us,
                library_us,
                product.weight.nbytes / min(times) / 1e3,
            )
        self._undecided.clear()

    def _times(self, num_rows: int, name: str, product: _Product) -> list[float] | None:
        """Returns the times of an earlier start, or new ones; None where they could not be kept."""
        section = _SECTIONS[num_rows]
        kept = self._notes.read(section, name)
        if _are_times(kept):
            times: list[float] = kept
            return times
        return self._notes.keep(section, name, self._timed(product, num_rows)) if self._notes.can_keep() else None

    def _timed(self, product: _Product, num_rows: int) -> list[float]:
        library, weight, bias, result = product
        x = torch.randn(num_rows, weight.shape[1], dtype=torch.float32, device=weight.device).to(weight.dtype)
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


def wide_product(weight: torch.Tensor) -> LinearKernel:
    """Returns a product in bfloat16 or float16 whose results are float32, by the library."""
    transposed = weight.t()
    return lambda x: torch.mm(x, transposed, out_dtype=torch.float32)


def wide_products_work(device: torch.device) -> bool:
    """Returns whether torch multiplies bfloat16 into float32, which spares logits a rounding and a pass."""
    x, weight = (torch.randn(*shape, device=device).bfloat16() for shape in ((3, 32), (48, 32)))
    try:
        wide = wide_product(weight)(x)
    except (RuntimeError, TypeError):
        return False
    exact = F.linear(x.float(), weight.float())
    return wide.dtype == torch.float32 and torch.allclose(wide, exact, rtol=1e-3, atol=1e-3)
