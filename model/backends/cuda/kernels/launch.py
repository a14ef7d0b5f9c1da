"""Starts every kernel, and lets a tool watch the launches.

Kernels are compiled for the arguments they are first called with. `recorded` lets a tool call the public functions
with tensors that have no storage and learn which kernels, types and configurations a GPU would compile.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from model.backends.cuda.kernels.dependent_launch import is_supported


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of a kernel.

    Attributes:
        kernel: the function that triton.jit made.
        grid: number of programs in up to three dimensions.
        arguments: run-time arguments in order: tensors, integers, floats or None.
        constants: compile-time arguments by name.
        num_warps: warps of a program.
        num_stages: stages of software pipelining.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int


# What the callers of `recorded` listen to, the last one first.
_recordings: list[list[Launch]] = []


def launch(
    kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int = 4, num_stages: int = 2, **constants: Any
) -> None:
    """Starts a kernel on the current stream; an empty grid starts nothing."""
    if _recordings:
        _recordings[-1].append(Launch(kernel, grid, arguments, constants, num_warps, num_stages))
    elif all(grid):
        options = {"launch_pdl": True} if is_supported() else {}
        constants["IS_DEPENDENT"] = bool(options)
        kernel[grid](*arguments, **constants, num_warps=num_warps, num_stages=num_stages, **options)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """While active, launches are listed and not carried out."""
    launches: list[Launch] = []
    _recordings.append(launches)
    try:
        yield launches
    finally:
        _recordings.pop()


_NUM_COUNTERS = 1 << 18


@functools.cache
def _zeros(device: torch.device) -> torch.Tensor:
    return torch.zeros(_NUM_COUNTERS, dtype=torch.int32, device=device)


def zeros_for_counting(device: torch.device, count: int) -> torch.Tensor:
    """Counters of programs that are done with their part, zero between kernels: who counts last puts its own back."""
    return _zeros(device) if count <= _NUM_COUNTERS else torch.zeros(count, dtype=torch.int32, device=device)


def next_power_of_2(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << max(0, number - 1).bit_length()
