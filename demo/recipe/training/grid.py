"""Weights on a grid: what the repository's checkpoint is rounded to, and training that already feels it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

GRID_STEPS = range(1, 17)  # that can be asked for; more pack hardly better than bfloat16 as it is


def round_to_grid(tensor: Tensor, steps: int) -> Tensor:
    """Rounds a matrix to multiples of one power of two: the file is as long as before, but packs into half.

    At the same error this packs better than dropping bits of mantissa, which spends as many on the smallest numbers as
    on the largest (measured on this checkpoint: 6 steps are 5.3 MB and 3.1% off, three bits 6.3 MB and 2.6%).

    Args:
        tensor: finite; vectors are left alone.
        steps: of the grid, at least so many to a standard deviation.

    Returns:
        The same type; bfloat16 holds up to 256 steps exactly.
    """
    deviation = float(tensor.std()) if tensor.dim() > 1 else 0.0
    if not deviation:
        return tensor
    step = 2.0 ** math.floor(math.log2(deviation / steps))
    return (tensor / step).round() * step


@contextmanager
def on_grid(parameters: Iterable[Tensor], steps: int | None) -> Iterator[None]:
    """Rounds parameters for as long as it lasts: the rounded model has gradients, the exact one takes the steps.

    Args:
        parameters: of the model.
        steps: see `round_to_grid`; None rounds nothing.
    """
    if steps is None:
        yield
        return
    exact = [(p, p.detach().clone()) for p in parameters if p.dim() > 1]
    with torch.no_grad():
        for parameter, value in exact:
            parameter.copy_(round_to_grid(value, steps))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in exact:
                parameter.copy_(value)
