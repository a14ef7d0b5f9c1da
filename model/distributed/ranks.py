"""Exchange of tensors between the ranks of a model.

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
    """One rank's line to the others."""

    place: Placement

    def tell(self, step: RankStep) -> None:
        """Tells the other ranks to take part in a step; only the leader calls it."""
        ...

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the sum over the ranks of a stage of x [T, N], of the same dtype; x may be overwritten."""
        ...

    def gather(self, x: torch.Tensor, num_columns: int) -> torch.Tensor:
        """Joins the columns of a stage's ranks, cut by `share_of`; only the first rank gets [T, num_columns]."""
        ...

    def share(self, x: torch.Tensor) -> None:
        """Overwrites x with that of the stage's first rank."""
        ...

    def send(self, x: torch.Tensor) -> None:
        """Begins to send x [T, N] float32 to the next stage; the caller must not write to it any more."""
        ...

    def receive(self, num_rows: int, num_columns: int) -> torch.Tensor:
        """Returns the next tensor that the stage before has sent, [num_rows, num_columns] float32."""
        ...

    def numbers(self, number: int) -> list[int]:
        """Exchanges a number: returns that of every process, in the order of processes, over all stages."""
        ...


class OneRank:
    """A model on one rank: there is no other to exchange with."""

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
