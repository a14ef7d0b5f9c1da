"""Quantised weights in the layout the Triton kernels read: made once, at load.

The published files pack inputs k, k + 1, ... of one output into a word. A kernel that unpacks a word gets values that
belong to different rows of its tile, so a tile's inputs are dealt out anew: with R = 16 words of a column in a tile,
the value at place s of word r is input `s * R + r` of the tile. What place s holds of all words is then 16 consecutive
inputs, one slice of a product, and reading x needs no gathering.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from model.backends.base import GPTQTensors, GroupedWeight

# Words of one column in a tile: 128 inputs at 4 bits, 64 at 8.
ROWS = 16
_WORD_BITS = 32

# Unpacked, a column takes eight times its bytes for a while.
_COLUMNS_AT_ONCE = 8192


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A quantised [N, K] weight.

    Attributes:
        words: [num_tiles * 16, N] int32.
        scales: [G, N] float16, bfloat16 or float32, as in the file.
        zeros: [G, N] uint8 (4 bits) or int16; None when all are the middle of the range.
        permutation: [K] int32, the input that stands at each place when groups were not consecutive, else None.
        bits: 4 or 8.
        group_size: inputs that share a scale; at least all of them when there is one group.
        in_features: K.
        out_features: N.
        offsets: [G, N] float32, what a group's numbers have beside their scaled values, or None.
        codes: [16] float32 of 4 bits: the level of each value, in the place of the value less its zero; or None.
        wide_results: whether products are float32 though the activations are not.
    """

    words: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    permutation: torch.Tensor | None
    bits: int
    group_size: int
    in_features: int
    out_features: int
    offsets: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    wide_results: bool = False

    @property
    def values_per_word(self) -> int:
        """8 or 4."""
        return _WORD_BITS // self.bits

    @property
    def num_tiles(self) -> int:
        """Tiles along the inputs."""
        return self.words.shape[0] // ROWS

    @property
    def slices_per_scale(self) -> int:
        """Slices of 16 inputs, within a tile, that surely share a scale."""
        return math.gcd(self.values_per_word, self.group_size // ROWS)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        tensors = (self.words, self.scales, self.zeros, self.permutation, self.offsets)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def pack(stored: GPTQTensors) -> PackedWeight | None:
    """Repacks a layer.

    Args:
        stored: the layer; its groups may be in any order.

    Returns:
        the weight, or None if its groups do not fall into slices of 16 inputs (the caller expands it then).
    """
    qweight, qzeros, scales, groups, bits, zero_offset = stored
    per_word = _WORD_BITS // bits
    in_features, out_features = qweight.shape[0] * per_word, qweight.shape[1]
    order = torch.argsort(groups, stable=True)
    group_size = _common_group_size(groups[order], scales.shape[0])
    if group_size is None:
        return None
    is_in_order = bool(torch.equal(order, torch.arange(in_features, device=order.device)))
    num_tiles = -(-in_features // (ROWS * per_word))
    words = torch.empty(num_tiles * ROWS, out_features, dtype=torch.int32, device=qweight.device)
    for low in range(0, out_features, _COLUMNS_AT_ONCE):
        columns = slice(low, low + _COLUMNS_AT_ONCE)
        words[:, columns] = _deal_out(qweight[:, columns], order, bits, num_tiles)
    zeros = _unpack_columns(qzeros, bits) + zero_offset
    is_symmetric = bool((zeros == 1 << (bits - 1)).all())
    return PackedWeight(
        words=words,
        scales=scales.contiguous(),
        zeros=None if is_symmetric else zeros.to(torch.uint8 if bits == 4 else torch.int16).contiguous(),
        permutation=None if is_in_order else order.to(torch.int32),
        bits=bits,
        group_size=group_size if scales.shape[0] > 1 else num_tiles * ROWS * per_word,
        in_features=in_features,
        out_features=out_features,
    )


class PackedKind(NamedTuple):
    """What a grouped weight compiles into the kernels."""

    bits: int
    group_size: int
    has_offsets: bool
    has_codes: bool


def pack_grouped(weight: GroupedWeight, *, wide_results: bool = False) -> PackedWeight | None:
    """Packs a weight of another origin than GPTQ.

    Args:
        weight: its groups are of consecutive inputs.
        wide_results: see `PackedWeight`.

    Returns:
        the weight, or None if its groups are no multiples of 16 inputs.
    """
    out_features, in_features = weight.shape
    if weight.group_size % ROWS and weight.scales.shape[1] > 1:
        return None
    per_word = _WORD_BITS // weight.bits
    num_tiles = -(-in_features // (ROWS * per_word))
    words = torch.empty(num_tiles * ROWS, out_features, dtype=torch.int32, device=weight.values.device)
    for low in range(0, out_features, _COLUMNS_AT_ONCE):
        columns = slice(low, low + _COLUMNS_AT_ONCE)
        words[:, columns] = _to_words(weight.values[columns].t().to(torch.int32), weight.bits, num_tiles)
    scales, offsets = weight.scales.t().contiguous(), weight.offsets
    offsets = None if offsets is None else offsets.t().contiguous()
    middle = 1 << (weight.bits - 1)
    if weight.codes is None and weight.zero != middle:
        shift = scales * (middle - weight.zero)
        offsets = shift if offsets is None else shift.add_(offsets)
    return PackedWeight(
        words=words,
        scales=scales,
        zeros=None,
        permutation=None,
        bits=weight.bits,
        group_size=weight.group_size if len(scales) > 1 else num_tiles * ROWS * per_word,
        in_features=in_features,
        out_features=out_features,
        offsets=offsets,
        codes=weight.codes,
        wide_results=wide_results,
    )


def _deal_out(qweight: torch.Tensor, order: torch.Tensor, bits: int, num_tiles: int) -> torch.Tensor:
    """Words whose value at place s of word r is input `order[s * R + r]` of the tile: [num_tiles * 16, N] int32."""
    per_word = _WORD_BITS // bits
    shifts = ((order % per_word) * bits).to(torch.int32)[:, None]
    values = (qweight[order // per_word] >> shifts).bitwise_and_((1 << bits) - 1)
    return _to_words(values, bits, num_tiles)


def _to_words(values: torch.Tensor, bits: int, num_tiles: int) -> torch.Tensor:
    """[K, N] int32 values as such words."""
    per_word = _WORD_BITS // bits
    missing = num_tiles * ROWS * per_word - len(values)
    values = torch.nn.functional.pad(values, (0, 0, 0, missing)).view(num_tiles, per_word, ROWS, -1)
    words = values[:, 0].clone()
    for place in range(1, per_word):
        words |= values[:, place] << (place * bits)
    return words.flatten(0, 1)


def _common_group_size(sorted_groups: torch.Tensor, num_groups: int) -> int | None:
    """The size of all groups (the last may be shorter), if slices of 16 sorted inputs never straddle two."""
    counts = torch.bincount(sorted_groups, minlength=num_groups).tolist()
    size = int(counts[0])
    if any(count != size for count in counts[:-1]) or counts[-1] > size:
        return None
    return size if num_groups == 1 or (size > 0 and size % ROWS == 0) else None


def _unpack_columns(words: torch.Tensor, bits: int) -> torch.Tensor:
    """[G, N / per] int32 words to [G, N] int32 values."""
    shifts = torch.arange(0, _WORD_BITS, bits, dtype=torch.int32, device=words.device)
    return ((words[:, :, None] >> shifts) & ((1 << bits) - 1)).flatten(1)
