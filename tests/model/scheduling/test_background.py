"""What runs in the background takes what the others leave, and gives it back when they want it."""

from __future__ import annotations

from collections import Counter

import pytest

from model.scheduling.sequence import SequenceStatus
from tests.support.fake_engine import FakeEngine, num_running, num_tokens


def test_alone_it_has_everything() -> None:
    engine = FakeEngine(max_num_seqs=8)
    for _ in range(20):
        engine.add([1, 2, 3], caller="batch a", max_tokens=50)
    engine.step()
    assert num_running(engine) == {"batch a": 8}
    assert num_tokens(engine, 10) == {"batch a": 80}


@pytest.mark.parametrize("num_blocks", [64, 12], ids=["slots are scarce", "blocks are scarce"])
def test_others_take_what_it_has_at_once(num_blocks: int) -> None:
    engine = FakeEngine(max_num_seqs=8, num_blocks=num_blocks)
    for _ in range(20):
        engine.add([1, 2, 3], caller="batch a", max_tokens=20)
    for _ in range(5):
        engine.step()
    before = num_running(engine)["batch a"]
    live = [engine.add([4, 3, number % 4, 1], caller="b", max_tokens=8)[0] for number in range(8)]
    engine.step()
    num_live = sum(seq.status is SequenceStatus.RUNNING for seq in live)
    assert num_live == 8
    assert num_running(engine)["batch a"] < before
    engine.run()
    assert all(seq.seq_id in engine.finished for seq in live) and len(engine.finished) == 28


@pytest.mark.parametrize(("max_num_seqs", "num_blocks"), [(1, 64), (8, 12)], ids=["one slot", "few blocks"])
def test_its_only_sequence_makes_way_too(max_num_seqs: int, num_blocks: int) -> None:
    engine = FakeEngine(max_num_seqs=max_num_seqs, num_blocks=num_blocks)
    engine.add([1] * 30, caller="batch a", max_tokens=15)
    for _ in range(3):
        engine.step()
    (live,) = engine.add([2] * 20, caller="b", max_tokens=4)
    engine.step()
    assert live.status is SequenceStatus.RUNNING
    engine.run()
    assert len(engine.finished) == 2


def test_it_takes_nothing_from_others() -> None:
    engine = FakeEngine(max_num_seqs=4)
    for _ in range(4):
        engine.add([1, 2, 3], caller="a", max_tokens=40)
    engine.step()
    for weight in (1, 9):
        engine.add([2, 2], caller=f"batch {weight}", weight=weight, max_tokens=4)
    counts = num_tokens(engine, 30)
    assert counts == {"a": 120}


def test_it_goes_on_beside_others_with_a_small_part_of_each_step() -> None:
    engine = FakeEngine(max_num_seqs=40, max_num_batched_tokens=256)
    for number in range(30):
        engine.add([1, 2, number % 4], caller="batch a", max_tokens=100)
    for _ in range(3):
        engine.step()
    engine.add([4, 4], caller="b", max_tokens=100)
    engine.step()
    for _ in range(10):
        batch, _ = engine.step()
        callers = Counter(engine.callers[entry.seq_id] for entry in batch)
        assert callers == {"b": 1, "batch a": 4} and batch.num_tokens == 5
    turns = {seq.num_output_tokens for seq in engine.live.values() if seq.caller == "batch a"}
    assert max(turns) - min(turns) <= 3, "in turns"


def test_its_prompts_wait_for_those_of_others() -> None:
    engine = FakeEngine(max_num_batched_tokens=64, num_blocks=400)
    engine.add([1] * 300, caller="batch a")
    engine.step()
    engine.add([2] * 200, caller="b")
    assert num_tokens(engine, 2) == {"b": 126, "batch a": 2}
    counts = num_tokens(engine, 2)
    assert counts["b"] > 64 and counts["batch a"] <= 2


def test_background_callers_share_with_each_other() -> None:
    engine = FakeEngine(max_num_seqs=8)
    for _ in range(20):
        engine.add([1, 2, 3], caller="batch a", max_tokens=100)
    engine.step()
    for _ in range(20):
        engine.add([3, 2, 3], caller="batch b", max_tokens=100)
    engine.step()
    assert num_running(engine) == {"batch a": 4, "batch b": 4}
