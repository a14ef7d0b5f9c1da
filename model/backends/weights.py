"""Quantised weights in the two layouts that a backend is given them in."""

from __future__ import annotations

from typing import NamedTuple

import torch


class GPTQTensors(NamedTuple):
    """A weight of the GPTQ layout as it is stored; see `model.quantization.gptq`.

    Attributes:
        qweight: [K / per, N] int32.
        qzeros: [G, N / per] int32, zeros minus `zero_offset`.
        scales: [G, N].
        groups: [K] int64, the group of each input.
        bits: 4 or 8.
        zero_offset: 1 in the published layout, 0 in the second one.
    """

    qweight: torch.Tensor
    qzeros: torch.Tensor
    scales: torch.Tensor
    groups: torch.Tensor
    bits: int
    zero_offset: int = 1

    def has_equal_groups(self) -> bool:
        """Whether all groups have as many inputs."""
        sizes = torch.bincount(self.groups, minlength=len(self.scales))
        return bool((sizes * len(self.scales) == len(self.groups)).all())

    def order_by_group(self) -> torch.Tensor | None:
        """The inputs sorted by group, [K] int64; None where they are sorted as they are stored (no act-order)."""
        is_sorted = not bool((self.groups[1:] < self.groups[:-1]).any())
        return None if is_sorted else torch.argsort(self.groups, stable=True)


class GroupedWeight(NamedTuple):
    """A weight of small integers with a scale, and perhaps an offset, for each group of consecutive inputs.

    `weight[n, k] = scales[n, g] * level + offsets[n, g]` with `g = k // (K / G)`, where the level of a value is
    `values[n, k] - zero`, or `codes[values[n, k]]`.

    Attributes:
        values: [N, K] uint8, from 0 to 2 ** bits - 1.
        scales: [N, G] float32.
        offsets: the same, or None.
        bits: 4 or 8.
        zero: the value whose level is 0: 128 with 8 bits; 8 or 0 with 4.
        codes: [16] float32, the level of each value of 4 bits where they are not evenly spaced, or None.
    """

    values: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor | None
    bits: int
    zero: int
    codes: torch.Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """N and K."""
        return self.values.shape

    @property
    def group_size(self) -> int:
        """How many inputs share a scale."""
        return self.values.shape[1] // self.scales.shape[1]

    @property
    def num_bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(t.nbytes for t in (self.values, self.scales, self.offsets) if t is not None)
