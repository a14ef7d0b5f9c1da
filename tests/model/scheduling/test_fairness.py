"""Callers share what one alone may have: slots, the tokens of a step, the KV cache, and turns."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.scheduling.callers import Caller, split
from model.scheduling.sequence import Sequence
from tests.support.fake_engine import FakeEngine, num_running, num_tokens


def streams(engine: FakeEngine) -> None:
    for _ in range(30):
        engine.add([1, 2, 3], caller="a", max_tokens=400)


def choices(engine: FakeEngine) -> None:
    for _ in range(2):
        engine.add([1, 2, 3], caller="a", n=8, max_tokens=400)


def long_prompts(engine: FakeEngine) -> None:
    for number in range(60):
        engine.add([1 + number % 4] * 60, caller="a", num_before=number, max_tokens=400)


def one_long_prompt(engine: FakeEngine) -> None:
    engine.add([1] * 600, caller="a", max_tokens=2)


def urgent(engine: FakeEngine) -> None:
    for _ in range(30):
        engine.add([1, 2, 3], caller="a", priority=-9, max_tokens=400)


def scored(engine: FakeEngine) -> None:
    engine.add([1] * 40, caller="a", n=20, max_tokens=400, num_prompt_logprobs=0)


def waiting_choices(engine: FakeEngine) -> None:
    """Their leader is gone, and the choices keep its prompt's blocks while they wait."""
    for number in range(4):
        engine.add([1 + number] * 60, caller="a", n=40, max_tokens=60)


LOADS = [streams, choices, long_prompts, one_long_prompt, urgent, scored, waiting_choices]


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.__name__)
@pytest.mark.parametrize("num_blocks", [40, 400])
def test_a_newcomer_has_its_first_token_at_once(load: Callable[[FakeEngine], None], num_blocks: int) -> None:
    engine = FakeEngine(num_blocks=num_blocks, block_size=16, max_num_batched_tokens=32)
    load(engine)
    for _ in range(20):
        engine.step()
    for _ in range(3):
        (seq,) = engine.add([4, 3, 2, 1, 2], caller="b", max_tokens=5)
        for _ in range(2):
            engine.step()
        assert seq.num_output_tokens >= 1
        for _ in range(5):
            engine.step()
        assert seq.seq_id in engine.finished, "and the others follow, one a step"


@pytest.mark.parametrize("load", [streams, choices, long_prompts, urgent], ids=lambda load: load.__name__)
def test_both_have_half_when_both_want_all(load: Callable[[FakeEngine], None]) -> None:
    engine = FakeEngine(num_blocks=400, block_size=16, max_num_batched_tokens=32)
    load(engine)
    num_tokens(engine, 5)
    for _ in range(30):
        engine.add([2] * 40, caller="b", max_tokens=300)
    num_tokens(engine, 12)
    assert num_running(engine) == {"a": 4, "b": 4}
    counts = num_tokens(engine, 30)
    assert 0.45 < counts["b"] / counts.total() < 0.55


def test_parts_follow_weights() -> None:
    engine = FakeEngine(max_num_seqs=8, num_blocks=400)
    for caller, weight in (("a", 1), ("b", 3)):
        for _ in range(20):
            engine.add([1, 2, 3], caller=caller, weight=weight, max_tokens=100)
    engine.step()
    assert num_running(engine) == {"a": 2, "b": 6}
    counts = num_tokens(engine, 20)
    assert counts["b"] == 3 * counts["a"]


@pytest.mark.parametrize("num_others", [0, 1])
def test_one_alone_has_everything(num_others: int) -> None:
    engine = FakeEngine(max_num_seqs=8, max_num_batched_tokens=16, num_blocks=400)
    streams(engine)
    for _ in range(num_others):
        engine.add([1], caller="b", max_tokens=1)
    for _ in range(4):
        engine.step()
    assert num_running(engine) == {"a": 8}, "what another has left is taken again"


def test_what_was_taken_stays_taken() -> None:
    """Callers at their due do not preempt each other to and fro."""
    engine = FakeEngine(max_num_seqs=9, num_blocks=400, max_num_batched_tokens=64)
    for caller in "abc":
        for _ in range(20):
            engine.add([1, 2, 3], caller=caller, max_tokens=60)
        engine.step()
    num_before = engine.scheduler.stats().num_preemptions_total
    assert num_before == 4 + 3
    num_tokens(engine, 40)
    assert num_running(engine) == {"a": 3, "b": 3, "c": 3}
    assert engine.scheduler.stats().num_preemptions_total == num_before


def test_blocks_are_shared_like_slots() -> None:
    engine = FakeEngine(num_blocks=64, block_size=4, caching=False, max_num_seqs=40, max_num_batched_tokens=100)
    for number in range(12):
        engine.add([1 + number % 4] * 30, caller="a", max_tokens=20)
    for _ in range(8):
        engine.step()
    few = [engine.add([3] * 12, caller="b", max_tokens=20)[0] for _ in range(5)]
    for _ in range(2):
        engine.step()
    assert all(seq.num_output_tokens for seq in few)
    engine.run()


def test_a_large_sequence_is_not_starved_by_small_ones() -> None:
    """It needs more than its due of the pool, and small ones of another never stop coming."""
    engine = FakeEngine(num_blocks=16, block_size=4, caching=False, max_num_batched_tokens=64)
    (large,) = engine.add([1] * 50, caller="a", max_tokens=8)
    for number in range(300):
        engine.add([2 + number % 3] * 6, caller="b", max_tokens=3)
        engine.step()
        if large.seq_id in engine.finished:
            break
    assert large.seq_id in engine.finished
    engine.run()


def test_a_long_prompt_shares_each_step_with_a_newcomers() -> None:
    engine = FakeEngine(max_num_batched_tokens=40, num_blocks=600)
    (long,) = engine.add([1] * 400, caller="a", max_tokens=1)
    engine.step()
    (other,) = engine.add([2] * 100, caller="b", max_tokens=1)
    for _ in range(5):
        engine.step()
    assert other.seq_id in engine.finished
    assert long.num_computed_tokens == 40 + 5 * 20
    batch, _ = engine.step()
    assert batch.num_tokens == 40, "and what the other left is not wasted"


def test_priority_counts_within_a_caller() -> None:
    engine = FakeEngine(max_num_seqs=1)
    order = [("a", 1), ("a", 0), ("b", 9), ("a", -1)]
    ids = [engine.add([1, 2], caller=caller, priority=priority, max_tokens=1)[0].seq_id for caller, priority in order]
    engine.run()
    assert list(engine.finished) == [ids[3], ids[2], ids[1], ids[0]]


def test_and_between_callers_where_it_is_allowed() -> None:
    engine = FakeEngine(max_num_seqs=1, allow_priority=True)
    order = [("a", 1), ("a", 0), ("b", 9), ("a", -1)]
    ids = [engine.add([1, 2], caller=caller, priority=priority, max_tokens=1)[0].seq_id for caller, priority in order]
    engine.run()
    assert list(engine.finished) == [ids[3], ids[1], ids[0], ids[2]]


def test_prompts_of_one_request_take_turns_with_other_requests() -> None:
    engine = FakeEngine(max_num_seqs=1)
    many = [engine.add([1, 2], num_before=number, max_tokens=1)[0].seq_id for number in range(20)]
    engine.step()
    engine.step()
    late = [engine.add([3, number], max_tokens=1)[0].seq_id for number in (1, 2)]
    engine.run()
    order = list(engine.finished)
    assert [order.index(seq_id) for seq_id in late] == [3, 4], "after the prompt whose turn it was"
    assert [seq_id for seq_id in order if seq_id in many] == many


def test_newcomers_do_not_hold_up_an_older_request_for_ever() -> None:
    engine = FakeEngine(max_num_seqs=1)
    many = [engine.add([1, 2], num_before=number, max_tokens=1)[0] for number in range(4)]
    for _ in range(20):
        engine.add([3, 1], max_tokens=1)
        engine.step()
    assert all(seq.seq_id in engine.finished for seq in many)


def test_no_more_of_one_caller_run_than_may() -> None:
    engine = FakeEngine(max_running_per_caller=2)
    streams(engine)
    engine.add([1], caller="b", n=3)
    for _ in range(4):
        engine.step()
        assert max(num_running(engine).values()) <= 2
    assert num_running(engine) == {"a": 2, "b": 2}


@pytest.mark.parametrize("budget", [2, 3])
def test_callers_take_turns_when_there_are_fewer_tokens_than_sequences(budget: int) -> None:
    engine = FakeEngine(max_num_batched_tokens=20)
    for caller in "aaaaab":
        engine.add([1], caller=caller, max_tokens=100)
    engine.step()
    engine.scheduler.max_num_batched_tokens = budget
    counts = num_tokens(engine, 30)
    assert counts["b"] == 30
    assert counts["a"] == 30 * (budget - 1)


def caller(name: str, weight: int) -> Caller:
    made = Caller(name)
    made.weight = weight
    return made


@given(
    num=st.integers(0, 600),
    wants=st.lists(st.tuples(st.integers(1, 600), st.integers(1, 4)), min_size=1, max_size=8),
)
def test_split(num: int, wants: list[tuple[int, int]]) -> None:
    """Nothing is wasted, nobody gets more than it wants, and who gets less has no less than another for its weight."""
    wanted = {caller(str(number), weight): want for number, (want, weight) in enumerate(wants)}
    parts = split(num, wanted)
    assert sum(parts.values()) == min(num, sum(wanted.values()))
    assert all(0 <= parts[c] <= wanted[c] for c in wanted)
    for poor in wanted:
        if parts[poor] < wanted[poor]:
            assert all(parts[c] / c.weight <= (parts[poor] + len(wants)) / poor.weight for c in wanted)


def test_a_caller_is_forgotten() -> None:
    engine = FakeEngine()
    seqs: list[Sequence] = engine.add([1], caller="a", n=3)
    engine.step()
    engine.abort([seq.seq_id for seq in seqs])
    assert len(engine.scheduler.residents.callers) == 0
