"""Data-parallel training: each process computes a share of every step's gradients.

On a CPU two processes with one thread are faster than one process with two, as the matrices are too small to divide
(3,900 tokens/s with two threads, where one thread made 2,600; 5,000 with two processes, where one makes 3,500).
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

LONG_ROW = 192  # longer rows are computed one by one, which divides a step more evenly


MEETING = "meeting"  # file in the state folder through which the processes find each other


def start_peers(processes: int, rank: int, argv: Sequence[str], folder: Path) -> list[subprocess.Popen[bytes]]:
    """Starts the other processes with the same command line, if this is the first one."""
    if processes == 1 or rank:
        return []
    (folder / MEETING).unlink(missing_ok=True)  # a file of an earlier run would mislead the processes
    command = module_command("demo.recipe.training.train", *argv)
    return [subprocess.Popen([*command, "--rank", str(r)]) for r in range(1, processes)]


class Peers:
    """Communication with the other processes. With one process, its methods do nothing.

    Args:
        rank: rank of this process, from 0.
        processes: how many processes there are.
        folder: shared folder for the file through which they find each other.
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
            timeout=timedelta(hours=2),  # a suspended machine may resume
        )

    def share(self, batches: list[Batch]) -> list[Batch]:
        """Returns this process's part of a step's batches; all parts cost about the same."""
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
        """Sums values over the processes, in place."""
        if self.processes > 1:
            dist.all_reduce(values)

    def agree(self, value: float) -> float:
        """Returns the largest value of all processes."""
        return self._reduced(value, dist.ReduceOp.MAX) if self.processes > 1 else value

    def sum(self, value: float) -> float:
        """Returns the sum of the values of all processes."""
        return self._reduced(value, dist.ReduceOp.SUM) if self.processes > 1 else value

    def _reduced(self, value: float, how: dist.ReduceOp.RedOpType) -> float:
        tensor = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(tensor, op=how)
        return tensor.item()


ALONE = Peers(0, 1, Path())
