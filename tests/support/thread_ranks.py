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
from model.contract.parallel import Placement
from model.distributed.shard import share_of
from model.distributed.step import RankStep, decode_step
from model.execution.worker import Worker
from model.loop.engine import Engine

_PATIENCE_S = 60.0


class Exchange:
    """What those who exchange have between them."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=_PATIENCE_S)
        self.parts: list[Any] = [None] * size


class Model:
    """What all its ranks have between them."""

    def __init__(self, size: int, num_stages: int) -> None:
        self.size = size
        self.num_stages = num_stages
        num_ranks = size * num_stages
        self.world = Exchange(num_ranks)
        self.stages = [Exchange(size) for _ in range(num_stages)]
        self.steps: list[queue.Queue[bytes | None]] = [queue.Queue() for _ in range(num_ranks)]
        self.sent: list[queue.Queue[torch.Tensor | None]] = [queue.Queue() for _ in range(num_ranks)]

    def end(self) -> None:
        """Lets nobody wait any more."""
        inboxes: list[queue.Queue[Any]] = [*self.steps, *self.sent]
        for inbox in inboxes:
            inbox.put(None)
        for exchange in [self.world, *self.stages]:
            exchange.barrier.abort()


class ThreadRanks:
    """Implements `model.distributed.ranks.Ranks`."""

    def __init__(self, model: Model, number: int) -> None:
        self.place = Placement.of(number, model.size, model.num_stages)
        self._model = model
        self._stage = model.stages[self.place.stage]

    def tell(self, step: RankStep) -> None:
        for steps in self._model.steps[1:]:
            steps.put(msgspec.msgpack.encode(step))

    def _all(self, part: Any) -> list[Any]:
        return _exchanged(self._stage, self.place.rank, part)

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        parts = self._all(x.clone())
        total = parts[0].float()
        for part in parts[1:]:
            total = total + part
        return total.to(x.dtype)

    def gather(self, x: torch.Tensor, num_columns: int) -> torch.Tensor:
        parts = self._all(x)
        shares = [share_of(num_columns, rank, self.place.size) for rank in range(self.place.size)]
        widths = [high - low for low, high in shares]
        assert [part.shape[1] for part in parts] == widths
        return torch.cat(parts, 1) if self.place.rank == 0 else x

    def share(self, x: torch.Tensor) -> None:
        x.copy_(self._all(x.clone())[0])

    def send(self, x: torch.Tensor) -> None:
        assert x.dtype == torch.float32
        self._model.sent[self.place.neighbour(1)].put(x)

    def receive(self, num_rows: int, num_columns: int) -> torch.Tensor:
        x = self._model.sent[self.place.number].get(timeout=_PATIENCE_S)
        if x is None:
            raise threading.BrokenBarrierError
        assert x.shape == (num_rows, num_columns)
        return x.clone()

    def numbers(self, number: int) -> list[int]:
        return [int(part) for part in _exchanged(self._model.world, self.place.number, number)]


def _exchanged(exchange: Exchange, index: int, part: Any) -> list[Any]:
    exchange.parts[index] = part
    exchange.barrier.wait()
    parts = list(exchange.parts)
    exchange.barrier.wait()
    return parts


@contextmanager
def engine_on_threads(config: EngineConfig) -> Iterator[Engine]:
    """An engine that leads as many ranks as it is told to."""
    model = Model(config.tensor_parallel_size, config.pipeline_parallel_size)
    threads = [
        threading.Thread(target=_follow, args=(model, number, config), daemon=True)
        for number in range(1, len(model.steps))
    ]
    for thread in threads:
        thread.start()
    try:
        yield Engine(config, None, ThreadRanks(model, 0))
    finally:
        model.end()
        for thread in threads:
            thread.join(_PATIENCE_S)


def _follow(model: Model, number: int, config: EngineConfig) -> None:
    try:
        worker = Worker(config, None, ThreadRanks(model, number))
        while (payload := model.steps[number].get()) is not None:
            worker.follow(decode_step(payload))
    except threading.BrokenBarrierError:
        pass
    except BaseException:
        model.end()
        raise
