"""How the ranks of one model exchange tensors.

All ranks make the same calls in the same order; what they need to know for that, the leader (rank 0) has told them
before a step. Nothing here depends on a clock, or on what one rank alone knows.
"""

from __future__ import annotations

from typing import Protocol

import torch

from model.distributed.step import RankStep

LEADER = 0


class OutOfStepError(Exception):
    """A rank left a step that others are still in: no exchange between them can be trusted any more."""


class Ranks(Protocol):
    """One rank's line to the others.

    Attributes:
        rank: its number.
        size: how many there are.
    """

    rank: int
    size: int

    def tell(self, step: RankStep) -> None:
        """Tells the other ranks to take part in a step; for the leader."""
        ...

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the sum of every rank's x [T, N], of the same dtype; x may be overwritten."""
        ...

    def gather(self, x: torch.Tensor, num_columns: int) -> torch.Tensor:
        """Joins the ranks' columns, cut by `share_of`: [T, num_columns] for the leader; others get something else."""
        ...

    def share(self, x: torch.Tensor) -> None:
        """Writes the leader's x into everybody's."""
        ...

    def numbers(self, number: int) -> list[int]:
        """Returns every rank's number, in the order of ranks."""
        ...


class OneRank:
    """A model on one rank: there is nobody to ask."""

    rank = LEADER
    size = 1

    def tell(self, step: RankStep) -> None:
        """See `Ranks`."""

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """See `Ranks`."""
        return x

    def gather(self, x: torch.Tensor, num_columns: int) -> torch.Tensor:
        """See `Ranks`."""
        return x

    def share(self, x: torch.Tensor) -> None:
        """See `Ranks`."""

    def numbers(self, number: int) -> list[int]:
        """See `Ranks`."""
        return [number]


ONE_RANK = OneRank()
