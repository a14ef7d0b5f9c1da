"""A rank that is led: it has its part of the model, and takes part in the steps that it is told of.

It must not know requests: it sees ids, positions and blocks, and what it computes goes to the leader as tensors.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed import FileStore, PrefixStore, ProcessGroupGloo  # type: ignore[attr-defined]

from model.backends.devices import device_of_rank
from model.contract.engine_config import EngineConfig
from model.contract.messages import Ping
from model.contract.parallel import Placement
from model.distributed.group import GroupRanks
from model.distributed.step import RankStep
from model.execution.worker import Worker
from model.loop.child_process import configure_logging, failure_of
from model.loop.connection import Connection, ConnectionClosed

logger = logging.getLogger(__name__)

SIGN_OF_LIFE_S = 1.0

# Longer than any step; a rank that is silent or gone is noticed by other means, and in seconds.
_EXCHANGE_TIMEOUT = timedelta(hours=1)


def join_group(
    config: EngineConfig, number: int, store: Path, tell: Callable[[RankStep], None] | None = None
) -> GroupRanks:
    """Meets the other ranks; returns when all are there.

    Args:
        number: this rank's number among those of all stages.
        store: path of a file that all ranks meet at. It must not exist yet; its folder must.
        tell: sends a step to the other ranks; None for those that are led.
    """
    place = Placement.of(number, config.tensor_parallel_size, config.pipeline_parallel_size)
    size = place.num_processes
    device = torch.device(device_of_rank(config.device, number, size))
    meeting = FileStore(str(store), size)
    world: Any
    if device.type == "cpu":
        world = ProcessGroupGloo(meeting, number, size, _EXCHANGE_TIMEOUT)
    else:
        torch.cuda.set_device(device)
        distributed.init_process_group(
            "nccl", store=meeting, rank=number, world_size=size, timeout=_EXCHANGE_TIMEOUT, device_id=device
        )
        world = distributed.group.WORLD
    ranks = GroupRanks(world, _stage_group(world, place, device, meeting), place, device, tell)
    if not place.is_first_stage:
        ranks.receive(1, 1)
    if not place.is_last_stage:
        ranks.send(torch.zeros(1, 1, device=device))
    ranks.numbers(number)  # until here others may still be reading the file, which the leader is about to remove
    return ranks


def _stage_group(world: Any, place: Placement, device: torch.device, meeting: FileStore) -> Any:
    """The process group of the ranks that share this one's layers."""
    if place.num_stages == 1 or place.size == 1:
        return world
    if device.type == "cpu":
        return ProcessGroupGloo(
            PrefixStore(f"stage {place.stage}", meeting), place.rank, place.size, _EXCHANGE_TIMEOUT
        )
    for stage in range(place.num_stages):  # all processes make all groups
        members = [place._replace(stage=stage, rank=rank).number for rank in range(place.size)]
        made = distributed.new_group(members, timeout=_EXCHANGE_TIMEOUT)
        if stage == place.stage:
            group = made
    return group


def run_rank(config: EngineConfig, rank: int, connection: Connection[RankStep], store: Path) -> int:
    """Loads a rank's part of the checkpoint and follows its leader until that is gone.

    Args:
        rank: 1 or above.
        connection: brings steps from the leader; takes signs of life to it, and the reason of a failure.
        store: path of the file that `join_group` takes.

    Returns:
        The exit status of the process.
    """
    configure_logging(config, rank)
    threading.Thread(target=_show_signs_of_life, args=(connection,), name="signs of life", daemon=True).start()
    try:
        worker = Worker(config, None, join_group(config, rank, store))
        gc.freeze()
        gc.enable()  # the leader had turned it off when it forked this process
        while True:
            worker.follow(connection.receive())
    except ConnectionClosed:
        return 0
    except Exception as error:
        failed = failure_of(error)
        if not failed.is_startup_error:
            logger.error("it failed:\n%s", traceback.format_exc())
        connection.send(failed)
        return 1


def _show_signs_of_life(connection: Connection[RankStep]) -> None:
    """Tells the leader again and again that this process runs, and ends it when there is nobody to be told."""
    while True:
        try:
            connection.send(Ping())
        except ConnectionClosed:
            os._exit(0)  # the main thread may wait for tensors of a leader that is gone
        time.sleep(SIGN_OF_LIFE_S)
