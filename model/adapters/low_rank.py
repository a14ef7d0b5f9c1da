"""The low-rank factors that adapters add to linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from model.distributed.shard import LinearShard


class LowRankUpdate(NamedTuple):
    """An addition to some rows of a weight: `weight[first_output : first_output + n] += scaling * B @ A`.

    Attributes:
        a: [rank, K], as stored.
        b: [n, rank], as stored.
    """

    first_output: int
    a: torch.Tensor
    b: torch.Tensor
    scaling: float

    @property
    def outputs(self) -> slice:
        """The outputs that it adds to."""
        return slice(self.first_output, self.first_output + self.b.shape[0])

    def scaled_b(self) -> torch.Tensor:
        """Returns scaling * B, [n, rank] float32."""
        return self.b.float() * self.scaling

    def on(self, shard: LinearShard) -> list[LowRankUpdate]:
        """Returns a rank's part, counted from the rank's first output: B is cut as outputs are, A as inputs.

        In a row-parallel layer every rank adds a partial sum, as its weight does.
        """
        a = self.a[:, slice(*shard.inputs)]
        parts: list[LowRankUpdate] = []
        start = 0
        for low, high in shard.outputs:
            first, end = max(low, self.outputs.start), min(high, self.outputs.stop)
            if first < end:
                b = self.b[first - self.first_output : end - self.first_output]
                parts.append(LowRankUpdate(start + first - low, a, b, self.scaling))
            start += high - low
        return parts

    def delta(self) -> torch.Tensor:
        """Returns the product that is added to the weight's rows, [n, K] float32."""
        return self.scaled_b() @ self.a.float()


def fold(updates: Sequence[LowRankUpdate], num_outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Joins several updates of a layer (at least one) into one pair of factors, the ranks side by side.

    Returns:
        A [R, K] and scaling * B [num_outputs, R], both float32; B is zero where an update does not reach.
    """
    a = torch.cat([update.a.float() for update in updates])
    b = torch.zeros(num_outputs, len(a), dtype=torch.float32)
    first = 0
    for update in updates:
        rank = len(update.a)
        b[update.outputs, first : first + rank] = update.scaled_b()
        first += rank
    return a, b
