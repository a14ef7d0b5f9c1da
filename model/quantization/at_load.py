"""Quantises weights as they are loaded: nothing is calibrated, each matrix is packed as soon as it is read.

- int8: symmetric, a scale for each group of inputs or for a whole output, whichever is nearer to the weights.
- int4: groups of 64 or 128 inputs, with an offset or without, whichever is nearer; ends of a group may be cut off where
  the rest gains by it.
- nf4: the sixteen levels of bitsandbytes ("normal float", arXiv 2305.14314), times the largest magnitude of 64 inputs.

What is nearer is decided by squared error, on some of a matrix's outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from model.backends.weights import GroupedWeight
from model.quantization.grouped import expand_rows

NF4_CODES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
NF4_GROUP = 64
_INT8_GROUPS = (128, 64, 32)
_INT4_GROUPS = (64, 128)

# Shares of a group's range, tried in turn: cutting off outliers may cost less than a coarser step for all others.
_REACHES = (1.0, 0.95, 0.9, 0.85)
_TRIED_OUTPUTS = 256
# Numbers quantised at a time: some ten float32 of them are in memory while they are.
_NUMBERS_PER_PASS = 4 << 20

# Values [R, G, size] uint8, scales [R, G] and offsets [R, G] or None, made of float32 groups [R, G, size].
_Quantized = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
_Quantizer = Callable[[torch.Tensor], _Quantized]


def quantize_at_load(weight: torch.Tensor, mode: str) -> GroupedWeight | None:
    """Quantises a matrix.

    Args:
        weight: [N, K], on any device, of any floating type.
        mode: a key of `model.contract.config.QUANTIZED_BITS`.

    Returns:
        None where its inputs do not fall into groups, so that it stays as it is.
    """
    num_inputs = weight.shape[1]
    if mode == "nf4":
        if num_inputs % NF4_GROUP:
            return None
        codes = torch.tensor(NF4_CODES, device=weight.device)
        return _apply(weight, NF4_GROUP, _nf4, bits=4, zero=0)._replace(codes=codes)
    if mode == "int8":
        sizes = [next((size for size in _INT8_GROUPS if num_inputs % size == 0), num_inputs), num_inputs]
        size = min(dict.fromkeys(sizes), key=lambda size: _error(weight, size, _int8, bits=8, zero=128))
        return _apply(weight, size, _int8, bits=8, zero=128)
    candidates = [
        (size, quantizer, zero)
        for size in _INT4_GROUPS
        if num_inputs % size == 0
        for quantizer, zero in ((_int4_symmetric, 8), (_int4_asymmetric, 0))
    ]
    if not candidates:
        return None
    size, quantizer, zero = min(candidates, key=lambda each: _error(weight, each[0], each[1], bits=4, zero=each[2]))
    return _apply(weight, size, quantizer, bits=4, zero=zero)


def _error(weight: torch.Tensor, size: int, quantizer: _Quantizer, *, bits: int, zero: int) -> float:
    """Returns the squared error on some outputs from all over the matrix."""
    rows = weight[:: max(1, len(weight) // _TRIED_OUTPUTS)]
    tried = _apply(rows, size, quantizer, bits=bits, zero=zero)
    expanded = expand_rows(tried.values, tried.scales, tried.offsets, zero, None)
    return float((expanded - rows.float()).square().sum())


def _apply(weight: torch.Tensor, size: int, quantizer: _Quantizer, *, bits: int, zero: int) -> GroupedWeight:
    num_outputs, num_inputs = weight.shape
    num_groups = num_inputs // size
    device = weight.device
    values = torch.empty(num_outputs, num_inputs, dtype=torch.uint8, device=device)
    scales = torch.empty(num_outputs, num_groups, device=device)
    offsets: torch.Tensor | None = None
    step = max(1, _NUMBERS_PER_PASS // num_inputs)
    for low in range(0, num_outputs, step):
        rows = slice(low, low + step)
        part, part_scales, part_offsets = quantizer(weight[rows].float().reshape(-1, num_groups, size))
        values[rows], scales[rows] = part.view(-1, num_inputs), part_scales
        if part_offsets is not None:
            offsets = torch.empty_like(scales) if offsets is None else offsets
            offsets[rows] = part_offsets
    return GroupedWeight(values, scales, offsets, bits, zero)


def _int8(groups: torch.Tensor) -> _Quantized:
    scales = groups.abs().amax(-1) / 127
    values = (groups * _inverse(scales)[..., None]).round_().add_(128).to(torch.uint8)
    return values, scales, None


def _int4_symmetric(groups: torch.Tensor) -> _Quantized:
    """Makes the number of largest magnitude the lowest of the 16 levels: its side has one more than the other."""
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    best = _Best(groups)
    for reach in _REACHES:
        scales = largest * (reach / -8)
        values = (groups * _inverse(scales)).round_().add_(8).clamp_(0, 15)
        best.offer(values, scales, None, (values - 8) * scales)
    return best.result()


def _int4_asymmetric(groups: torch.Tensor) -> _Quantized:
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    middle = (low + high) / 2
    best = _Best(groups)
    for reach in _REACHES:
        scales = (high - low) * (reach / 15)
        offsets = middle - scales * 7.5
        values = ((groups - offsets) * _inverse(scales)).round_().clamp_(0, 15)
        best.offer(values, scales, offsets, values * scales + offsets)
    return best.result()


class _Best:
    """Keeps for each group the way to quantise it with the smallest error."""

    def __init__(self, groups: torch.Tensor) -> None:
        self._groups = groups
        self._error: torch.Tensor | None = None
        self._kept: list[torch.Tensor] = []

    def offer(
        self, values: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor | None, expanded: torch.Tensor
    ) -> None:
        error = expanded.sub_(self._groups).square_().sum(-1, keepdim=True)
        offered = [values, scales] if offsets is None else [values, scales, offsets]
        if self._error is None:
            self._error, self._kept = error, offered
            return
        is_better = error < self._error
        self._error = torch.where(is_better, error, self._error)
        self._kept = [torch.where(is_better, new, old) for new, old in zip(offered, self._kept, strict=True)]

    def result(self) -> _Quantized:
        values, scales, *offsets = self._kept
        return values.to(torch.uint8), scales[..., 0], offsets[0][..., 0] if offsets else None


def _nf4(groups: torch.Tensor) -> _Quantized:
    scales = groups.abs().amax(-1)
    codes = torch.tensor(NF4_CODES, device=groups.device)
    between = (codes[1:] + codes[:-1]) / 2
    scaled = torch.where(scales[..., None] == 0, 0.0, groups / scales[..., None])
    return torch.bucketize(scaled, between, out_int32=True).to(torch.uint8), scales, None


def _inverse(scales: torch.Tensor) -> torch.Tensor:
    """Returns one over each scale; 0 for a group of nothing but zeros."""
    return torch.where(scales == 0, 0.0, 1 / scales)
