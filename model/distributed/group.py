"""Ranks in processes of their own, which exchange tensors through torch.distributed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.distributed import BroadcastOptions, GatherOptions

from model.distributed.ranks import LEADER
from model.distributed.shard import share_of
from model.distributed.step import RankStep


class GroupRanks:
    """Ranks over a process group of torch.distributed: NCCL on CUDA devices, gloo on a CPU.

    On a CPU a row's result must depend on that row alone, so sums are made in the order of ranks: gloo's own sums
    begin at another rank for each stretch of the tensor. Of two numbers there is only one sum.

    Args:
        group: a process group of all ranks, or a backend of one.
        rank: this one.
        size: how many there are.
        device: where tensors are.
        tell: brings a step to the other ranks; for the leader.
    """

    def __init__(
        self,
        group: Any,
        rank: int,
        size: int,
        device: torch.device,
        tell: Callable[[RankStep], None] | None = None,
    ) -> None:
        self.rank = rank
        self.size = size
        self._group = group
        self._device = device
        self._tell = tell

    def tell(self, step: RankStep) -> None:
        """See `Ranks`."""
        assert self._tell is not None, "only the leader plans steps"
        self._tell(step)

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """See `Ranks`."""
        x = x.contiguous()
        if self.size == 2 or self._device.type != "cpu":
            self._group.allreduce([x]).wait()
            return x
        parts = self._all(x)
        total = parts[0].float()
        for part in parts[1:]:
            total += part
        return total.to(x.dtype)

    def gather(self, x: torch.Tensor, num_columns: int) -> torch.Tensor:
        """See `Ranks`."""
        shares = [share_of(num_columns, rank, self.size) for rank in range(self.size)]
        widths = [high - low for low, high in shares]
        if x.shape[1] < max(widths):  # all send equally much
            x = F.pad(x, (0, max(widths) - x.shape[1]))
        x = x.contiguous()
        if self._device.type != "cpu":
            parts = self._all(x)
        else:
            parts = [torch.empty_like(x) for _ in widths] if self.rank == LEADER else []
            options = GatherOptions()
            options.rootRank = LEADER
            self._group.gather([parts] if parts else [], [x], options).wait()
        if self.rank != LEADER:
            return x
        return torch.cat([part[:, :width] for part, width in zip(parts, widths, strict=True)], 1)

    def share(self, x: torch.Tensor) -> None:
        """See `Ranks`."""
        options = BroadcastOptions()
        options.rootRank = LEADER
        options.rootTensor = 0
        self._group.broadcast([x], options).wait()

    def numbers(self, number: int) -> list[int]:
        """See `Ranks`."""
        own = torch.tensor([number], dtype=torch.int64, device=self._device)
        return [int(part) for part in self._all(own)]

    def _all(self, x: torch.Tensor) -> list[torch.Tensor]:
        parts = [torch.empty_like(x) for _ in range(self.size)]
        self._group.allgather([parts], [x]).wait()
        return parts
