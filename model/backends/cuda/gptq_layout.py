"""Quantised weights in the layout the Triton kernels read: made once, at load.

The published files pack inputs k, k + 1, ... of one output into a word. Here a word's lower half holds the first and
its upper half the second ones of pairs of inputs: shifted and masked, a word is then a register with two adjacent
numbers of 16 bits, as tensor cores take them. With R words of an output in a tile and P values in a word, the value at
place `j + h * P / 2` of word r is input `2 * R * j + 2 * r + h` of the tile: what all words hold at place j and half a
word further on are 2 R consecutive inputs, one slice of a product, and reading x needs no gathering.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from model.backends.weights import GPTQTensors, GroupedWeight

# Words of one output in a tile: 128 inputs at 4 bits, 64 at 8. Half of them where groups are no multiples of a slice.
_ROWS = 16
# Inputs that surely share a scale.
FINEST_GROUP = 16
_WORD_BITS = 32

# Unpacked, an output takes eight times its bytes for a while.
_OUTPUTS_AT_ONCE = 8192


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A quantised [N, K] weight.

    Attributes:
        words: [N, num_tiles * rows_per_tile] int32.
        scales: [G, N] float16, bfloat16 or float32, as in the file.
        bits: 4 or 8.
        group_size: inputs that share a scale; at least all of them when there is one group.
        in_features: K.
        out_features: N.
        zeros: [G, N] uint8 (4 bits) or int16; None when all are the middle of the range.
        permutation: [K] int32, the input that stands at each place when groups were not consecutive, else None.
        rows_per_tile: words of an output in a tile, 16 or 8.
        offsets: [G, N] float32, what a group's numbers have beside their scaled values, or None.
        codes: [16] float32 of 4 bits: the level of each value, in the place of the value less its zero; or None.
        wide_results: whether products are float32 though the activations are not.
    """

    words: torch.Tensor
    scales: torch.Tensor
    bits: int
    group_size: int
    in_features: int
    out_features: int
    zeros: torch.Tensor | None = None
    permutation: torch.Tensor | None = None
    rows_per_tile: int = _ROWS
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
        return self.words.shape[1] // self.rows_per_tile

    @property
    def slices_per_scale(self) -> int:
        """Slices of a tile that surely share a scale."""
        return math.gcd(self.values_per_word // 2, self.group_size // (2 * self.rows_per_tile))

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
        the weight, or None if its groups do not fall into parts of 16 inputs (the caller expands it then).
    """
    qweight, qzeros, scales, groups, bits, zero_offset = stored
    in_features = qweight.shape[0] * (_WORD_BITS // bits)
    order = torch.argsort(groups, stable=True)
    group_size = _common_group_size(groups[order], scales.shape[0])
    if group_size is None:
        return None
    is_in_order = bool(torch.equal(order, torch.arange(in_features, device=order.device)))
    zeros = _unpack_columns(qzeros, bits) + zero_offset
    is_symmetric = bool((zeros == 1 << (bits - 1)).all())
    return _packed(
        lambda outputs: _in_order(qweight[:, outputs], order, bits),
        scales.contiguous(),
        in_features,
        group_size,
        bits,
        zeros=None if is_symmetric else zeros.to(torch.uint8 if bits == 4 else torch.int16).contiguous(),
        permutation=None if is_in_order else order.to(torch.int32),
    )


class PackedKind(NamedTuple):
    """The traits of a grouped weight that are compiled into the kernels."""

    bits: int
    group_size: int
    has_offsets: bool
    has_codes: bool


def pack_grouped(weight: GroupedWeight, *, wide_results: bool = False) -> PackedWeight | None:
    """Packs a weight of another origin than GPTQ.

    Args:
        weight: a weight whose groups are of consecutive inputs.
        wide_results: see `PackedWeight`.

    Returns:
        the weight, or None if its groups are no multiples of 16 inputs.
    """
    if weight.group_size % FINEST_GROUP and weight.scales.shape[1] > 1:
        return None
    scales, offsets = weight.scales.t().contiguous(), weight.offsets
    offsets = None if offsets is None else offsets.t().contiguous()
    middle = 1 << (weight.bits - 1)
    if weight.codes is None and weight.zero != middle:
        shift = scales * (middle - weight.zero)
        offsets = shift if offsets is None else shift.add_(offsets)
    return _packed(
        lambda outputs: weight.values[outputs].to(torch.int32),
        scales,
        weight.shape[1],
        weight.group_size,
        weight.bits,
        offsets=offsets,
        codes=weight.codes,
        wide_results=wide_results,
    )


def _packed(
    values_of: Callable[[slice], torch.Tensor],
    scales: torch.Tensor,
    in_features: int,
    group_size: int,
    bits: int,
    **others: Any,
) -> PackedWeight:
    """Deals out values to words, those of some outputs at a time.

    Args:
        values_of: returns the values of some outputs, [outputs, in_features] int32.
        scales: [G, N].
        in_features: K.
        group_size: inputs that share a scale.
        bits: 4 or 8.
        others: the other attributes of the `PackedWeight`.
    """
    num_groups, out_features = scales.shape
    rows = _ROWS if num_groups == 1 or group_size % (2 * _ROWS) == 0 else _ROWS // 2
    tile_inputs = rows * _WORD_BITS // bits
    num_tiles = -(-in_features // tile_inputs)
    words = torch.empty(out_features, num_tiles * rows, dtype=torch.int32, device=scales.device)
    for low in range(0, out_features, _OUTPUTS_AT_ONCE):
        outputs = slice(low, low + _OUTPUTS_AT_ONCE)
        words[outputs] = _to_words(values_of(outputs), bits, rows)
    return PackedWeight(
        words=words,
        scales=scales,
        bits=bits,
        group_size=group_size if num_groups > 1 else num_tiles * tile_inputs,
        in_features=in_features,
        out_features=out_features,
        rows_per_tile=rows,
        **others,
    )


def _in_order(qweight: torch.Tensor, order: torch.Tensor, bits: int) -> torch.Tensor:
    """Returns the values of the published words, inputs in this order: [N, K] int32."""
    per_word = _WORD_BITS // bits
    shifts = ((order % per_word) * bits).to(torch.int32)[:, None]
    return (qweight[order // per_word] >> shifts).bitwise_and_((1 << bits) - 1).t()


def _to_words(values: torch.Tensor, bits: int, rows: int) -> torch.Tensor:
    """Deals [N, K] int32 values out to words as the module says: [N, num_tiles * rows] int32."""
    per_word = _WORD_BITS // bits
    values = torch.nn.functional.pad(values, (0, -values.shape[1] % (rows * per_word)))
    values = values.reshape(len(values), -1, per_word // 2, rows, 2)  # output, tile, place, word, half
    words = torch.zeros_like(values[:, :, 0, :, 0])
    for half in range(2):
        for place in range(per_word // 2):
            words |= values[:, :, place, :, half] << (place * bits + half * (_WORD_BITS // 2))
    return words.flatten(1)


def _common_group_size(sorted_groups: torch.Tensor, num_groups: int) -> int | None:
    """Returns the size of all groups (the last may be shorter), if no 16 sorted inputs in a row straddle two."""
    counts = torch.bincount(sorted_groups, minlength=num_groups).tolist()
    size = int(counts[0])
    if any(count != size for count in counts[:-1]) or counts[-1] > size:
        return None
    return size if num_groups == 1 or (size > 0 and size % FINEST_GROUP == 0) else None


def _unpack_columns(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Unpacks [G, N / per] int32 words to [G, N] int32 values."""
    shifts = torch.arange(0, _WORD_BITS, bits, dtype=torch.int32, device=words.device)
    return ((words[:, :, None] >> shifts) & ((1 << bits) - 1)).flatten(1)
