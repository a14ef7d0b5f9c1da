"""Several processes that train one model: each computes a share of every step's gradients.

On a CPU two processes of one thread are faster than one of two: the matrices are too small to divide (3,900 tokens/s
with two threads, where one thread made 2,600; 5,000 with two processes, where one makes 3,500).
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from demo.recipe.training.batches import Batch
from server.run_module import module_command

LONG_ROW = 192  # rows longer than this are computed one by one, which divides a step more evenly


MEETING = "meeting"  # the file, in the state's folder, through which the processes find each other


def start_peers(processes: int, rank: int, argv: Sequence[str], folder: Path) -> list[subprocess.Popen[bytes]]:
    """Starts the other processes with the same command line; does nothing in one of them."""
    if processes == 1 or rank:
        return []
    (folder / MEETING).unlink(missing_ok=True)  # of a run before: it would lead the processes astray
    command = module_command("demo.recipe.training.train", *argv)
    return [subprocess.Popen([*command, "--rank", str(r)]) for r in range(1, processes)]


class Peers:
    """What one process needs of the others; alone, all of it does nothing.

    Args:
        rank: of this process, from 0.
        processes: how many there are.
        folder: they meet in a file of it.
    """

    def __init__(self, rank: int, processes: int, folder: Path) -> None:
        self.rank, self.processes = rank, processes
        if processes == 1:
            return
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder.resolve() / MEETING}",
            rank=rank,
            world_size=processes,
            timeout=timedelta(hours=2),  # a stopped machine may go on
        )

    def share(self, batches: list[Batch]) -> list[Batch]:
        """This process' part of a step, all parts costing about the same.

        Args:
            batches: of the whole step; the same in every process.
        """
        if self.processes == 1:
            return batches
        pieces = [piece for b in batches for piece in b.split(1 if b.ids.shape[1] > LONG_ROW else len(b.ids))]
        pieces.sort(key=lambda piece: -piece.ids.numel())
        loads, parts = [0] * self.processes, [[] for _ in range(self.processes)]  # type: list[int], list[list[Batch]]
        for piece in pieces:
            least = loads.index(min(loads))
            loads[least] += piece.ids.numel()
            parts[least].append(piece)
        return parts[self.rank]

    def add_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Replaces every gradient by its sum over the processes."""
        if self.processes == 1:
            return
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        flat = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
        self.add(flat)
        at = 0
        for p in parameters:
            p.grad = flat[at : at + p.numel()].view_as(p)
            at += p.numel()

    def add(self, values: Tensor) -> None:
        """Adds up the processes' values in place."""
        if self.processes > 1:
            dist.all_reduce(values)

    def agree(self, value: float) -> float:
        """The largest of what the processes say."""
        return self._reduced(value, dist.ReduceOp.MAX) if self.processes > 1 else value

    def sum(self, value: float) -> float:
        """The sum of what the processes say."""
        return self._reduced(value, dist.ReduceOp.SUM) if self.processes > 1 else value

    def _reduced(self, value: float, how: dist.ReduceOp.RedOpType) -> float:
        tensor = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(tensor, op=how)
        return tensor.item()


ALONE = Peers(0, 1, Path())
