"""How the ranks of one model exchange tensors.

All ranks of a stage make the same calls in the same order; what they need to know for that, the leader has told them
before a step. Nothing here depends on a clock, or on what one rank alone knows.
"""

from __future__ import annotations

from typing import Protocol

import torch

from model.contract.parallel import Placement
from model.distributed.step import RankStep


class OutOfStepError(Exception):
    """A rank left a step that others are still in: no exchange between them can be trusted any more."""


class Ranks(Protocol):
    """One rank's line to the others.

    Attributes:
        place: its own.
    """

    place: Placement

    def tell(self, step: RankStep) -> None:
        """Tells the other ranks to take part in a step; for the leader."""
        ...

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the sum over the ranks of a stage of x [T, N], of the same dtype; x may be overwritten."""
        ...

    def gather(self, x: torch.Tensor, num_columns: int) -> torch.Tensor:
        """Joins the columns of a stage's ranks, cut by `share_of`: [T, num_columns] for the first of them.

        Others get something else.
        """
        ...

    def share(self, x: torch.Tensor) -> None:
        """Writes the x of a stage's first rank into that of the others."""
        ...

    def send(self, x: torch.Tensor) -> None:
        """Begins to bring x [T, N] float32 to the next stage; it must not be written to any more."""
        ...

    def receive(self, num_rows: int, num_columns: int) -> torch.Tensor:
        """Returns what the stage before has sent, [num_rows, num_columns] float32, in the order in which it did."""
        ...

    def numbers(self, number: int) -> list[int]:
        """Returns every process's number, in their order, over all stages."""
        ...


class OneRank:
    """A model on one rank: there is nobody to ask."""

    place = Placement()

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

    def send(self, x: torch.Tensor) -> None:
        """See `Ranks`."""
        raise AssertionError("there is no other stage")

    def receive(self, num_rows: int, num_columns: int) -> torch.Tensor:
        """See `Ranks`."""
        raise AssertionError("there is no other stage")

    def numbers(self, number: int) -> list[int]:
        """See `Ranks`."""
        return [number]


ONE_RANK = OneRank()
