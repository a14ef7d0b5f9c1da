"""Ranks in processes of their own, which exchange tensors through torch.distributed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.distributed import BroadcastOptions, GatherOptions

from model.contract.parallel import Placement
from model.distributed.shard import share_of
from model.distributed.step import RankStep


class GroupRanks:
    """Ranks over process groups of torch.distributed: NCCL on CUDA devices, gloo on a CPU.

    On a CPU a row's result must depend on that row alone, so sums are made in the order of ranks: gloo's own sums
    begin at another rank for each stretch of the tensor. Two numbers have only one sum.

    Args:
        world: a process group of all processes of the model, or a backend of one.
        group: the same for the ranks of this stage.
        place: this process's place.
        device: the device of all tensors.
        tell: brings a step to the other ranks; the leader needs it.
    """

    def __init__(
        self,
        world: Any,
        group: Any,
        place: Placement,
        device: torch.device,
        tell: Callable[[RankStep], None] | None = None,
    ) -> None:
        self.place = place
        self._world = world
        self._group = group
        self._sending: deque[tuple[Any, torch.Tensor]] = deque()
        self._device = device
        self._tell = tell

    def tell(self, step: RankStep) -> None:
        """See `Ranks`."""
        assert self._tell is not None, "only the leader plans steps"
        self._tell(step)

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """See `Ranks`."""
        if self.place.size == 1:
            return x
        x = x.contiguous()
        if self.place.size == 2 or self._device.type != "cpu":
            self._group.allreduce([x]).wait()
            return x
        parts = _all(self._group, x, self.place.size)
        total = parts[0].float()
        for part in parts[1:]:
            total += part
        return total.to(x.dtype)

    def gather(self, x: torch.Tensor, num_columns: int) -> torch.Tensor:
        """See `Ranks`."""
        size = self.place.size
        if size == 1:
            return x
        shares = [share_of(num_columns, rank, size) for rank in range(size)]
        widths = [high - low for low, high in shares]
        if x.shape[1] < max(widths):  # all send equally much
            x = F.pad(x, (0, max(widths) - x.shape[1]))
        x = x.contiguous()
        if self._device.type != "cpu":
            parts = _all(self._group, x, size)
        else:
            parts = [torch.empty_like(x) for _ in widths] if self.place.rank == 0 else []
            options = GatherOptions()
            options.rootRank = 0
            self._group.gather([parts] if parts else [], [x], options).wait()
        if self.place.rank != 0:
            return x
        return torch.cat([part[:, :width] for part, width in zip(parts, widths, strict=True)], 1)

    def share(self, x: torch.Tensor) -> None:
        """See `Ranks`."""
        options = BroadcastOptions()
        options.rootRank = 0
        options.rootTensor = 0
        self._group.broadcast([x], options).wait()

    def send(self, x: torch.Tensor) -> None:
        """See `Ranks`."""
        work = self._world.send([x], self.place.neighbour(1), 0)
        if self._device.type != "cpu":
            work.wait()  # holds up the device's queue, not this process
            return
        # It is done when the other side asks for it, so this side waits for none but those that must have been taken.
        self._sending.append((work, x))
        if len(self._sending) > self.place.num_stages:
            self._sending.popleft()[0].wait()

    def receive(self, num_rows: int, num_columns: int) -> torch.Tensor:
        """See `Ranks`."""
        x = torch.empty(num_rows, num_columns, dtype=torch.float32, device=self._device)
        self._world.recv([x], self.place.neighbour(-1), 0).wait()
        return x

    def numbers(self, number: int) -> list[int]:
        """See `Ranks`."""
        own = torch.tensor([number], dtype=torch.int64, device=self._device)
        return [int(part) for part in _all(self._world, own, self.place.num_processes)]


def _all(group: Any, x: torch.Tensor, size: int) -> list[torch.Tensor]:
    parts = [torch.empty_like(x) for _ in range(size)]
    group.allgather([parts], [x]).wait()
    return parts
