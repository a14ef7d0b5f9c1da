"""The part of each weight that a rank has.

A linear of N outputs and K inputs is split in one of two ways. Column-parallel: a rank has some of the outputs, all
inputs; what follows works on its outputs alone. Row-parallel: it has some of the inputs and all outputs, and its
results are partial sums, which the architecture adds up over the ranks.

Other forms of a weight (quantised, an adapter's factors) are cut by the same `LinearShard`: dimensions of outputs by
`output_cut`, dimensions of inputs by `input_cut`. Anything added to the results of a row-parallel layer must be a
partial sum as well, or be added by one rank alone (`keeps_bias`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

Range = tuple[int, int]


def share_of(number: int, rank: int, size: int) -> Range:
    """Returns where a rank's share of `number` things begins and ends; shares differ by one where they must."""
    return number * rank // size, number * (rank + 1) // size


class Cut(NamedTuple):
    """The part of a stored tensor that a rank reads.

    Attributes:
        dim: the dimension that is cut.
        size: its length in the file.
        ranges: the parts that are kept, in this order.
    """

    dim: int
    size: int
    ranges: tuple[Range, ...]

    def stored_shape(self, shape: torch.Size) -> torch.Size:
        """Returns the shape in the file, given that of the rank's part."""
        return torch.Size([*shape[: self.dim], self.size, *shape[self.dim + 1 :]])

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the rank's part: a view of the tensor where it is one range."""
        parts = [tensor.narrow(self.dim, low, high - low) for low, high in self.ranges]
        return parts[0] if len(parts) == 1 else torch.cat(parts, self.dim)

    def in_words(self, per_word: int) -> Cut:
        """Returns the same cut of a tensor that packs `per_word` neighbours into one.

        Raises:
            ValueError: a range does not begin or end between two words.
        """
        numbers = [self.size, *(number for bounds in self.ranges for number in bounds)]
        if any(number % per_word for number in numbers):
            raise ValueError("the cut goes through a word")
        ranges = tuple((low // per_word, high // per_word) for low, high in self.ranges)
        return Cut(self.dim, self.size // per_word, ranges)


class LinearShard(NamedTuple):
    """A rank's part of a linear, which has `in_features` and `out_features` as a whole."""

    in_features: int
    out_features: int
    outputs: tuple[Range, ...]
    inputs: Range
    rank: int

    @property
    def num_inputs(self) -> int:
        """Inputs of the rank's part."""
        return self.inputs[1] - self.inputs[0]

    @property
    def num_outputs(self) -> int:
        """Outputs of the rank's part."""
        return sum(high - low for low, high in self.outputs)

    @property
    def is_row_parallel(self) -> bool:
        """Whether results are partial sums."""
        return self.num_inputs < self.in_features

    @property
    def keeps_bias(self) -> bool:
        """Whether the rank adds the bias, its part or all of it; only one partial sum may have it."""
        return self.rank == 0 or not self.is_row_parallel

    def output_cut(self, dim: int) -> Cut | None:
        """Returns how a tensor with the outputs along `dim` is cut; None where it stays whole."""
        return None if self.is_row_parallel else Cut(dim, self.out_features, self.outputs)

    def input_cut(self, dim: int) -> Cut | None:
        """Returns how a tensor with the inputs along `dim` is cut; None where it stays whole."""
        return Cut(dim, self.in_features, (self.inputs,)) if self.is_row_parallel else None


def column_parallel(in_features: int, parts: tuple[int, ...], rank: int, size: int) -> LinearShard | None:
    """Splits the outputs.

    Args:
        in_features: K.
        parts: lengths of the stretches of outputs of which each rank has its share, such as queries, keys and values.
        rank: the rank whose part is returned.
        size: number of ranks; None is returned for one.
    """
    if size == 1:
        return None
    outputs: list[Range] = []
    start = 0
    for length in parts:
        low, high = share_of(length, rank, size)
        outputs.append((start + low, start + high))
        start += length
    return LinearShard(in_features, start, tuple(outputs), (0, in_features), rank)


def row_parallel(in_features: int, out_features: int, rank: int, size: int) -> LinearShard | None:
    """Splits the inputs; see `column_parallel`."""
    if size == 1:
        return None
    return LinearShard(in_features, out_features, ((0, out_features),), share_of(in_features, rank, size), rank)
