"""Trials of products: with weights as they are, with quantised ones, with the factors of adapters."""

from __future__ import annotations

import torch

from model.backends.cuda.gptq_layout import PackedKind, PackedWeight, pack_grouped
from model.backends.cuda.operations import Operation
from model.backends.cuda.self_check.inputs import Draw, KernelShape, drawn_gptq_weight
from model.backends.weights import GroupedWeight

_NUM_OUTPUTS = 72  # of quantised weights


def row_matmul(operation: Operation, shape: KernelShape, size: int) -> list[torch.Tensor]:
    """Multiplies one, two and four rows with a weight of so many outputs."""
    draw = Draw(shape, size)
    inputs = shape.hidden_size + (0 if size % 8 == 0 else 5)
    weight = (draw.normal(size, inputs) / inputs**0.25).to(shape.dtype)
    x = (draw.normal(4, inputs) / inputs**0.25).to(shape.dtype)
    bias = draw.normal(size, dtype=shape.dtype)
    few = [operation(x[:num_rows], weight, bias) for num_rows in (1, 2, 4)]
    return [operation(x[:1], weight, None, torch.float32), *few]


def add_low_rank(operation: Operation, shape: KernelShape, size: int) -> list[torch.Tensor]:
    """Adds to so many rows what their adapters have, in three parts and in one."""
    draw = Draw(shape, size)
    hidden, rank, num_slots = shape.hidden_size, 16, 3
    results = []
    for num_parts, num_outputs in ((3, 3 * hidden), (1, hidden + 8)):
        x, out = (draw.normal(size, n, dtype=shape.dtype) for n in (hidden, num_outputs))
        a = draw.normal(num_slots, num_parts * rank, hidden) / hidden**0.5
        b = draw.normal(num_slots, num_outputs, rank) / rank**0.5
        slots = draw.integers(-1, num_slots, size, dtype=torch.int32)
        results.append(operation(out, x, slots, a.to(shape.dtype), b.to(shape.dtype)))
    return results


def tile_matmul(operation: Operation, shape: KernelShape, size: int) -> list[torch.Tensor]:
    """Multiplies so many rows with a weight."""
    draw = Draw(shape, size)
    inputs = shape.hidden_size + (0 if size % 8 == 0 else 5)
    x, weight = (draw.normal(n, inputs) / inputs**0.25 for n in (size, 70))
    x, weight, bias = x.to(shape.dtype), weight.to(shape.dtype), draw.normal(70, dtype=shape.dtype)
    return [operation(x, weight, None, torch.float32), operation(x, weight, bias)]


def gptq(operation: Operation, shape: KernelShape, size: int) -> list[torch.Tensor]:
    """Multiplies so many rows; below 0 with zeros and an order of groups that are not trivial, and a bias."""
    draw = Draw(shape, abs(size))
    weights = [_drawn_grouped(draw, shape, kind) for kind in shape.packed_kinds]
    if shape.bits is not None or not weights:
        group_size = 128 if shape.group_size == -1 else shape.group_size
        num_inputs = group_size * (1 if shape.group_size == -1 else max(3, -(-160 // group_size)))
        weights.append(drawn_gptq_weight(draw, shape, num_inputs, _NUM_OUTPUTS, is_plain=size > 0))
    results = []
    for weight in weights:
        x = draw.normal(abs(size), weight.in_features, dtype=shape.dtype)
        bias = None if size > 0 else draw.normal(weight.out_features, dtype=shape.dtype)
        results.append(operation(x, weight, bias))
    return results


def _drawn_grouped(draw: Draw, shape: KernelShape, kind: PackedKind) -> PackedWeight:
    size = 128 if kind.group_size == -1 else kind.group_size
    num_groups = 1 if kind.group_size == -1 else max(3, -(-160 // size))
    values = draw.integers(0, 1 << kind.bits, _NUM_OUTPUTS, size * num_groups, dtype=torch.uint8)
    scales = draw.normal(_NUM_OUTPUTS, num_groups).abs() / (1 << kind.bits)
    offsets = draw.normal(_NUM_OUTPUTS, num_groups) if kind.has_offsets else None
    codes = draw.normal(16) * 8 if kind.has_codes else None
    packed = pack_grouped(GroupedWeight(values, scales, offsets, kind.bits, 1 << (kind.bits - 1), codes))
    assert packed is not None
    return packed
