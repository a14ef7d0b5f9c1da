"""GPTQ for one linear: finds integers whose products with real inputs stay near the original's.

After Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2022,
arXiv:2210.17323), algorithm 1: weights are rounded input by input, and the error of each is passed on to the inputs not
yet rounded, in the proportion that the inverse Hessian of the squared error of the outputs gives. Scales are symmetric.
Knows neither files nor models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model.contract.errors import CheckpointError

_INPUTS_PER_PASS = 128  # errors are passed on within so many inputs at once, to the rest in one product
# A scale that clips the largest weights can be better for all the others; so many steps down are tried.
_SHRINK_STEPS = 12
_SHRINK_BY = 0.03
_MAX_DAMP = 1.0


@dataclass(frozen=True, slots=True)
class QuantizedLinear:
    """A quantised weight in the order of the original inputs.

    Attributes:
        values: [K, N] uint8, from 0 to 2 ** bits - 1.
        scales: [G, N] float16.
        g_idx: [K] int32, the group of each input.
    """

    values: torch.Tensor
    scales: torch.Tensor
    g_idx: torch.Tensor
    bits: int

    @property
    def zero(self) -> int:
        """The integer that stands for 0."""
        return 1 << (self.bits - 1)

    def dequantized(self) -> torch.Tensor:
        """Returns the weight that it stands for, [N, K] float32."""
        scales = self.scales.float()[self.g_idx.long()]
        return ((self.values.float() - self.zero) * scales).t().contiguous()


class Hessian:
    """Collects the mean of x * x^T over the inputs of a linear: [K, K] float32 on the device."""

    def __init__(self, num_inputs: int, device: torch.device) -> None:
        self.matrix = torch.zeros(num_inputs, num_inputs, dtype=torch.float32, device=device)
        self._num_rows = 0

    def add(self, x: torch.Tensor) -> None:
        """Takes inputs [T, K]."""
        x = x.float()
        total = self._num_rows + len(x)
        self.matrix.mul_(self._num_rows / total).addmm_(x.t(), x, alpha=1.0 / total)
        self._num_rows = total


def output_error(weight: torch.Tensor, other: torch.Tensor, hessian: torch.Tensor) -> float:
    """Returns the mean squared error of the outputs with `other` for `weight`, as a share of their mean square.

    Args:
        weight: [N, K].
        other: [N, K].
        hessian: [K, K], the mean of x * x^T.
    """
    difference = weight.float() - other.float()
    error = (difference @ hessian).mul_(difference).sum()
    size = (weight.float() @ hessian).mul_(weight).sum()
    return float(error / size) if float(size) > 0 else 0.0


def quantize_linear(
    weight: torch.Tensor, hessian: torch.Tensor, *, bits: int, group_size: int, act_order: bool, damp: float
) -> QuantizedLinear:
    """Quantises a weight.

    Args:
        weight: [N, K]; not changed.
        hessian: [K, K] float32, the mean of x * x^T over real inputs; not changed. The identity makes this plain
            rounding to the nearest.
        bits: 4 or 8.
        group_size: inputs that share a scale; -1 is all.
        act_order: quantise the most important inputs first; groups then follow that order.
        damp: share of the diagonal's mean that is added to it.

    Raises:
        CheckpointError: weight or inputs hold infinities or NaN.
    """
    num_inputs = weight.shape[1]
    group_size = num_inputs if group_size == -1 else group_size
    if not (bool(weight.isfinite().all()) and bool(hessian.isfinite().all())):
        raise CheckpointError("weights or activations hold infinities or NaN")
    # Inputs as rows: one input's weights then lie next to each other.
    rows = weight.detach().t().float().contiguous()
    importance = hessian.diagonal()
    is_dead = importance == 0  # never seen: rounding their weights costs nothing that is known
    order = torch.arange(num_inputs, device=weight.device)
    if act_order:
        order = torch.argsort(importance, descending=True, stable=True)
        rows = rows[order]
    hessian = hessian[order][:, order]
    hessian.diagonal()[is_dead[order]] = 1.0
    factor = _inverse_factor(hessian, damp)
    values, scales = _round_in_turn(rows, factor, bits, group_size)
    g_idx = torch.empty(num_inputs, dtype=torch.int32, device=weight.device)
    g_idx[order] = (torch.arange(num_inputs, device=weight.device) // group_size).to(torch.int32)
    in_order = torch.empty_like(values)
    in_order[order] = values
    return QuantizedLinear(in_order, scales, g_idx, bits)


def _inverse_factor(hessian: torch.Tensor, damp: float) -> torch.Tensor:
    """Returns the upper Cholesky factor of the damped Hessian's inverse; damps more where it is indefinite."""
    mean = float(hessian.diagonal().mean())
    while True:
        damped = hessian.clone()
        damped.diagonal().add_(damp * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if int(failed) == 0:
            factor: torch.Tensor
            factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if int(failed) == 0 and bool(factor.isfinite().all()):
                return factor
        if damp >= _MAX_DAMP:
            raise CheckpointError("the calibration inputs cannot be used: their Hessian is not positive definite")
        damp = min(_MAX_DAMP, damp * 4)


def _round_in_turn(
    rows: torch.Tensor, factor: torch.Tensor, bits: int, group_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds input by input; overwrites `rows` [K, N].

    Returns:
        values [K, N] uint8 and scales [G, N] float16, G counted in the order of `rows`.
    """
    num_inputs, num_outputs = rows.shape
    values = torch.empty(num_inputs, num_outputs, dtype=torch.uint8, device=rows.device)
    scales: list[torch.Tensor] = []
    zero, top = 1 << (bits - 1), (1 << bits) - 1
    # Errors reach the rows beyond a pass at its end. A scale must be chosen from weights that all earlier errors have
    # reached, so where a group begins either a pass begins too or the whole group lies within one.
    per_pass = _INPUTS_PER_PASS
    if group_size % per_pass:
        per_pass = max(per_pass // group_size, 1) * group_size
    for low in range(0, num_inputs, per_pass):
        high = min(low + per_pass, num_inputs)
        errors = torch.empty(high - low, num_outputs, dtype=torch.float32, device=rows.device)
        for k in range(low, high):
            if k % group_size == 0:
                scales.append(_choose_scale(rows[k : k + group_size], bits))
            scale = scales[-1].float()
            row = rows[k]
            rounded = (row / scale).round_().add_(zero).clamp_(0, top)
            values[k] = rounded.to(torch.uint8)
            error = (row - (rounded - zero) * scale) / factor[k, k]
            errors[k - low] = error
            if k + 1 < high:
                rows[k + 1 : high].addr_(factor[k, k + 1 : high], error, alpha=-1)
        if high < num_inputs:
            rows[high:].addmm_(factor[low:high, high:].t(), errors, alpha=-1)
    return values, torch.stack(scales)


def _choose_scale(group: torch.Tensor, bits: int) -> torch.Tensor:
    """Finds each output's scale for a group of inputs [g, N] with the least squared rounding error; [N] float16."""
    zero, top = 1 << (bits - 1), (1 << bits) - 1
    widest = group.abs().amax(0) * 2 / top
    widest = torch.where(widest > 0, widest, torch.ones_like(widest))
    best = best_error = None
    for step in range(_SHRINK_STEPS):
        # float16 as it is stored; below its least normal number it would lose all precision.
        scale = (widest * (1 - step * _SHRINK_BY)).clamp_min(torch.finfo(torch.float16).tiny).half()
        full = scale.float()
        error = ((group / full).round_().clamp_(-zero, top - zero).mul_(full) - group).square_().sum(0)
        if best is None or best_error is None:
            best, best_error = scale, error
            continue
        is_better = error < best_error
        best = torch.where(is_better, scale, best)
        best_error = torch.where(is_better, error, best_error)
    assert best is not None
    return best
