"""Expands, cuts and moves grouped weights."""

from __future__ import annotations

import torch

from model.backends.weights import GroupedWeight
from model.distributed.shard import Cut
from model.quantization.packing import pack_halves, unpack_halves

# float32 products at a time
_NUMBERS_PER_PASS = 16 << 20


def expand(weight: GroupedWeight, dtype: torch.dtype) -> torch.Tensor:
    """Returns the weight as numbers: [N, K], contiguous; products and sums in float32, rounded once."""
    num_outputs, num_inputs = weight.values.shape
    out = torch.empty(num_outputs, num_inputs, dtype=dtype, device=weight.values.device)
    rows = max(1, _NUMBERS_PER_PASS // num_inputs)
    for low in range(0, num_outputs, rows):
        part = slice(low, low + rows)
        offsets = None if weight.offsets is None else weight.offsets[part]
        out[part] = expand_rows(weight.values[part], weight.scales[part], offsets, weight.zero, weight.codes)
    return out


def expand_rows(
    values: torch.Tensor,
    scales: torch.Tensor,
    offsets: torch.Tensor | None,
    zero: int,
    codes: torch.Tensor | None,
) -> torch.Tensor:
    """Expands some rows of a weight to [R, K] float32; for the arguments see `GroupedWeight`."""
    num_rows, num_groups = scales.shape
    levels = values.float().sub_(zero) if codes is None else codes[values.long()]
    levels = levels.view(num_rows, num_groups, -1).mul_(scales[..., None])
    if offsets is not None:
        levels += offsets[..., None]
    return levels.view(num_rows, -1)


class StoredRows:
    """A grouped weight that stays as small as it is stored: the rows that are read are expanded each time.

    Values of 4 bits lie two in a byte (`pack_halves`).

    Attributes:
        num_bytes: bytes that it holds.
    """

    def __init__(self, weight: GroupedWeight) -> None:
        self._has_halves = weight.bits == 4 and weight.shape[1] % 2 == 0
        self._weight = weight._replace(values=pack_halves(weight.values)) if self._has_halves else weight
        self.num_bytes = self._weight.num_bytes

    def expand(self, rows: slice | torch.Tensor) -> torch.Tensor:
        """Some rows, a slice or [R] int64, as [R, K] float32."""
        values, scales, offsets, _, zero, codes = self._weight
        values = unpack_halves(values[rows]) if self._has_halves else values[rows]
        return expand_rows(values, scales[rows], None if offsets is None else offsets[rows], zero, codes)


def part_of(weight: GroupedWeight, cut: Cut) -> GroupedWeight | None:
    """Returns a rank's part of a weight, cut along outputs (0) or inputs (1); None where the cut splits a group."""
    values, scales, offsets = weight.values, weight.scales, weight.offsets
    try:
        of_groups = cut if cut.dim == 0 else cut.in_words(weight.group_size)
    except ValueError:
        return None
    return weight._replace(
        values=cut.of(values), scales=of_groups.of(scales), offsets=None if offsets is None else of_groups.of(offsets)
    )


def moved(weight: GroupedWeight, device: torch.device) -> GroupedWeight:
    """Returns the same weight on a device."""
    if weight.values.device == device:
        return weight
    return weight._replace(
        values=weight.values.to(device),
        scales=weight.scales.to(device),
        offsets=None if weight.offsets is None else weight.offsets.to(device),
        codes=None if weight.codes is None else weight.codes.to(device),
    )
