"""Ranks as threads of one process: the same calls as between processes, at a fraction of their cost."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import torch

from model.contract.engine_config import EngineConfig
from model.distributed.ranks import LEADER
from model.distributed.shard import share_of
from model.distributed.step import RankStep, decode_step
from model.execution.model_runner import ModelRunner
from model.loop.engine import Engine

_PATIENCE_S = 60.0


class Exchange:
    """What the ranks of one model have between them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=_PATIENCE_S)
        self.parts: list[Any] = [None] * size
        self.steps: list[queue.Queue[bytes | None]] = [queue.Queue() for _ in range(size)]


class ThreadRanks:
    """Implements `model.distributed.ranks.Ranks`."""

    def __init__(self, exchange: Exchange, rank: int) -> None:
        self.rank = rank
        self.size = exchange.size
        self._exchange = exchange

    def tell(self, step: RankStep) -> None:
        for steps in self._exchange.steps[1:]:
            steps.put(msgspec.msgpack.encode(step))

    def _all(self, part: Any) -> list[Any]:
        exchange = self._exchange
        exchange.parts[self.rank] = part
        exchange.barrier.wait()
        parts = list(exchange.parts)
        exchange.barrier.wait()
        return parts

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        parts = self._all(x.clone())
        total = parts[0].float()
        for part in parts[1:]:
            total = total + part
        return total.to(x.dtype)

    def gather(self, x: torch.Tensor, num_columns: int) -> torch.Tensor:
        parts = self._all(x)
        widths = [high - low for low, high in (share_of(num_columns, r, self.size) for r in range(self.size))]
        assert [part.shape[1] for part in parts] == widths
        return torch.cat(parts, 1) if self.rank == LEADER else x

    def share(self, x: torch.Tensor) -> None:
        x.copy_(self._all(x.clone())[LEADER])

    def numbers(self, number: int) -> list[int]:
        return [int(part) for part in self._all(number)]


@contextmanager
def engine_on_threads(size: int, config: EngineConfig) -> Iterator[Engine]:
    """An engine that leads so many ranks."""
    exchange = Exchange(size)
    threads = [
        threading.Thread(target=_follow, args=(exchange, rank, config), daemon=True) for rank in range(1, size)
    ]
    for thread in threads:
        thread.start()
    try:
        yield Engine(config, None, ThreadRanks(exchange, LEADER))
    finally:
        for steps in exchange.steps:
            steps.put(None)
        exchange.barrier.abort()
        for thread in threads:
            thread.join(_PATIENCE_S)


def _follow(exchange: Exchange, rank: int, config: EngineConfig) -> None:
    try:
        runner = ModelRunner(config, None, ThreadRanks(exchange, rank))
        while (payload := exchange.steps[rank].get()) is not None:
            runner.follow(decode_step(payload))
    except threading.BrokenBarrierError:
        pass
    except BaseException:
        exchange.barrier.abort()
        raise
