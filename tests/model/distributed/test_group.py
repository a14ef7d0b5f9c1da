"""What ranks exchange over gloo, each rank in a thread with a group of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TypeVar

import pytest
import torch
from torch.distributed import HashStore, PrefixStore, ProcessGroupGloo  # type: ignore[attr-defined]

from model.contract.parallel import Placement
from model.distributed.group import GroupRanks

T = TypeVar("T")


def on_all(size: int, num_stages: int, run: Callable[[GroupRanks], T]) -> list[T]:
    """What every process's call returns, in their order."""
    store, patience = HashStore(), timedelta(seconds=60)

    def one(number: int) -> T:
        place = Placement.of(number, size, num_stages)
        world = ProcessGroupGloo(store, number, place.num_processes, patience)
        group = ProcessGroupGloo(PrefixStore(f"{place.stage}", store), place.rank, size, patience)
        return run(GroupRanks(world, group, place, torch.device("cpu")))

    with ThreadPoolExecutor(size * num_stages) as pool:
        return list(pool.map(one, range(size * num_stages)))


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("num_stages", [1, 2])
def test_ranks_of_a_stage(size: int, num_stages: int) -> None:
    torch.manual_seed(0)
    parts = torch.randn(num_stages, size, 4, 5)
    whole = torch.randn(num_stages, 4, 7)

    def run(ranks: GroupRanks) -> None:
        stage, rank = ranks.place.stage, ranks.place.rank
        total = parts[stage, 0].clone()
        for part in parts[stage, 1:]:
            total += part
        assert torch.equal(ranks.sum(parts[stage, rank].clone()), total), "in the order of ranks"
        low, high = 7 * rank // size, 7 * (rank + 1) // size
        joined = ranks.gather(whole[stage, :, low:high], 7)
        assert rank or torch.equal(joined, whole[stage]), "also where shares differ"
        shared = torch.tensor([10 * stage + rank])
        ranks.share(shared)
        assert shared.tolist() == [10 * stage]
        assert ranks.numbers(ranks.place.number) == list(range(size * num_stages))

    on_all(size, num_stages, run)


def test_hidden_states_reach_the_next_stage_in_order() -> None:
    """A stage sends ahead of whoever receives, and each rank to the one with its number."""

    def run(ranks: GroupRanks) -> list[list[float]]:
        place, seen = ranks.place, []
        for step in range(20):
            if place.is_first_stage:
                x = torch.full((1 + step, 3), 10.0 * step + place.rank)
            else:
                x = ranks.receive(1 + step, 3)
            seen.append(x.unique().tolist())
            if not place.is_last_stage:
                ranks.send(x)
        ranks.numbers(0)  # what a group has not sent yet is lost with it
        return seen

    for number, seen in enumerate(on_all(2, 3, run)):
        assert seen == [[10.0 * step + number % 2] for step in range(20)]
