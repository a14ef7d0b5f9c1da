"""The scheduler driven by a fake model whose cache remembers what was written where.

`FakeEngine` keeps a memory of slots. Computing a chunk writes, for each position, the token, the position, the rotary
alpha and a digest of everything before it; before that, every earlier position of the sequence must read back exactly
what it ought to be. A wrong block shared, kept or evicted cannot go unnoticed.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from model.contract.errors import InvalidRequestError
from model.contract.sampling_params import SamplingParams
from model.scheduling.sequence import ScheduledBatch, Sequence, SequenceStatus
from tests.support.fake_engine import (
    EOS,
    FakeEngine,
    output_ids,
    sample,
    update,
)
from tests.support.scheduling_integrity import check_scheduler


class TestEndings:
    def test_length(self) -> None:
        engine = FakeEngine()
        (seq,) = engine.add([1, 2, 3], max_tokens=5)
        engine.run()
        assert engine.finished[seq.seq_id][1] == "length"
        assert seq.num_output_tokens == 5

    def test_an_ending_id_is_part_of_the_output(self) -> None:
        engine = FakeEngine()
        (seq,) = engine.add([1, 2, 3], max_tokens=500, eos_token_ids=(EOS,))
        engine.run()
        assert engine.finished[seq.seq_id][1] == "stop"
        assert output_ids(seq)[-1] == EOS
        assert EOS not in output_ids(seq)[:-1]

    def test_it_is_reported_with_the_reason(self) -> None:
        engine = FakeEngine()
        first = sample([1], 0, 1.0)
        engine.add([1], max_tokens=1, eos_token_ids=(first,))
        _, (update,) = engine.step()
        assert (update.token_ids, update.finish_reason, update.stop_token_id) == ([first], "stop", first)

    def test_ignore_eos(self) -> None:
        engine = FakeEngine()
        (seq,) = engine.add([1, 2, 3], max_tokens=60, eos_token_ids=(EOS,), ignore_eos=True)
        engine.run()
        assert seq.num_output_tokens == 60
        assert EOS in output_ids(seq)

    def test_max_model_len(self) -> None:
        engine = FakeEngine(max_model_len=10)
        (seq,) = engine.add([1, 2, 3], max_tokens=500)
        engine.run()
        assert seq.num_tokens == 10
        assert engine.finished[seq.seq_id][1] == "length"

    @pytest.mark.parametrize("n", [1, 3])
    def test_a_prompt_can_be_scored_without_sampling(self, n: int) -> None:
        engine = FakeEngine(max_num_batched_tokens=3)
        seqs = engine.add([1] * 9, n=n, max_tokens=0, num_prompt_logprobs=0)
        engine.run()
        assert [engine.finished[seq.seq_id] for seq in seqs] == [([], "length")] * n

    def test_who_outgrows_the_whole_pool_alone_ends(self) -> None:
        engine = FakeEngine(num_blocks=4, block_size=2)
        (seq,) = engine.add([1, 2, 3], max_tokens=500)
        engine.run()
        assert seq.num_tokens == 9  # 8 slots, and a last token that needs none
        assert engine.finished[seq.seq_id][1] == "length"

    def test_a_missing_token_is_an_error(self) -> None:
        scheduler = FakeEngine().scheduler
        scheduler.add([Sequence(1, "request", [1], SamplingParams(max_tokens=1))])
        with pytest.raises(ValueError, match="no token"):
            update(scheduler, scheduler.schedule(), [[]])

    def test_a_complete_grammar_ends_it_whatever_the_token(self) -> None:
        engine = FakeEngine()
        (seq,) = engine.add([1])
        (end,) = update(engine.scheduler, engine.scheduler.schedule(), [[3]], completed={seq.seq_id})
        assert (end.token_ids, end.finish_reason, end.stop_token_id) == ([3], "stop", None)

    def test_who_is_late_is_left_out_and_holds_nobody_up(self) -> None:
        """Running or preempted: the others of the step go on, and those behind it are admitted."""
        scheduler = FakeEngine(max_num_seqs=2).scheduler
        seqs = [Sequence(i, "request", [i], SamplingParams(max_tokens=4)) for i in range(3)]
        for seq in seqs:
            scheduler.add([seq])
        update(scheduler, scheduler.schedule(), [[7], [7]])
        assert [entry.seq_id for entry in scheduler.schedule({0})] == [1]
        assert not scheduler.schedule({0, 1})
        scheduler.residents._preempt(seqs[0])
        assert [entry.seq_id for entry in scheduler.schedule({0})] == [1, 2]
        check_scheduler(scheduler)


class TestRefusals:
    @pytest.mark.parametrize(
        ("length", "max_tokens", "is_taken"),
        [(0, 1, False), (9, 1, True), (10, 1, False), (10, 0, True), (11, 0, False)],
    )
    def test_by_max_model_len(self, length: int, max_tokens: int, is_taken: bool) -> None:
        engine = FakeEngine(max_model_len=10)
        if is_taken:
            engine.add([1] * length, max_tokens=max_tokens)
        else:
            with pytest.raises(InvalidRequestError):
                engine.add([1] * length, n=2, max_tokens=max_tokens)
            assert not engine.scheduler.has_work()
        engine.run()

    def test_by_pool(self) -> None:
        engine = FakeEngine(num_blocks=4, block_size=2)
        with pytest.raises(InvalidRequestError, match="at most 8 fit") as caught:
            engine.add([1] * 9)
        assert caught.value.code == "context_length_exceeded"
        engine.add([1] * 8)
        engine.run()


class TestOrder:
    def test_decodes_come_first_and_prefill_takes_what_is_left(self) -> None:
        engine = FakeEngine(max_num_batched_tokens=10)
        first, second = engine.add([1, 2], max_tokens=20), engine.add([2, 3], max_tokens=20)
        engine.step()
        engine.add([4] * 30)
        batch, _ = engine.step()
        assert [(entry.seq_id, entry.num_tokens) for entry in batch] == [
            (first[0].seq_id, 1),
            (second[0].seq_id, 1),
            (2, 8),
        ]
        assert (batch.num_decodes, batch.num_tokens) == (2, 10)
        batch, _ = engine.step()
        assert [entry.start for entry in batch] == [2 + 1, 2 + 1, 8]

    def test_a_prompt_of_one_token_is_no_decode(self) -> None:
        engine = FakeEngine()
        engine.add([1], max_tokens=3)
        assert [engine.step()[0].num_decodes for _ in range(3)] == [0, 1, 1]

    def test_by_priority_then_arrival(self) -> None:
        engine = FakeEngine(max_num_seqs=1)
        ids = [engine.add([1, 2], priority=priority, max_tokens=1)[0].seq_id for priority in (1, 0, 1, 0, -1)]
        engine.run()
        assert list(engine.finished) == [ids[4], ids[1], ids[3], ids[0], ids[2]]

    def test_a_prompt_in_chunks_lets_others_decode(self) -> None:
        engine = FakeEngine(max_num_batched_tokens=4)
        (short,) = engine.add([1], max_tokens=30)
        engine.step()
        (long,) = engine.add([2] * 60, max_tokens=1)
        engine.step_until(lambda: long.seq_id in engine.finished)
        assert short.num_output_tokens == 1 + 20

    @pytest.mark.parametrize("budget", [1, 2, 3])
    def test_decodes_take_turns_when_there_are_more_than_tokens(self, budget: int) -> None:
        engine = FakeEngine(max_num_batched_tokens=5)
        seqs = [engine.add([i], max_tokens=50)[0] for i in range(1, 6)]
        engine.step_until(lambda: all(seq.num_output_tokens for seq in seqs))
        engine.scheduler.max_num_batched_tokens = budget
        for _ in range(40):
            engine.step()
            counts = [seq.num_output_tokens for seq in seqs]
            assert max(counts) - min(counts) <= 1

    def test_a_prompt_under_way_takes_turns_too(self) -> None:
        engine = FakeEngine(max_num_batched_tokens=3)
        for i in (1, 2):
            engine.add([i], max_tokens=300)
        engine.step()
        (late,) = engine.add([3] * 8, max_tokens=1)
        engine.step()
        engine.scheduler.max_num_batched_tokens = 1
        for _ in range(3 * 8):
            engine.step()
        assert late.seq_id in engine.finished

    def test_a_large_prompt_at_the_head_is_not_overtaken_forever(self) -> None:
        engine = FakeEngine(num_blocks=8, block_size=2, caching=False)
        engine.add([1] * 6, max_tokens=4)
        engine.step()
        (large,) = engine.add([2] * 14, max_tokens=2)
        for _ in range(20):
            engine.add([3, 4], max_tokens=2)
        engine.run()
        assert list(engine.finished).index(large.seq_id) <= 1

    def test_a_watermark_is_left_to_those_who_run(self) -> None:
        engine = FakeEngine(num_blocks=4, block_size=2, caching=False)
        engine.add([1] * 4, max_tokens=2)
        engine.step()
        (other,) = engine.add([2] * 2, max_tokens=2)  # one block, where one is left beside the one decoding soon takes
        batch, _ = engine.step()
        assert other.status is SequenceStatus.WAITING
        assert len(batch) == 1
        engine.run()


class TestPreemption:
    def test_the_least_important_goes_and_comes_back_the_same(self) -> None:
        engine = FakeEngine(num_blocks=8, block_size=2, caching=False)
        (low,) = engine.add([1] * 3, max_tokens=9, priority=1, alpha=3.0)
        (high,) = engine.add([2] * 3, max_tokens=9)
        engine.step_until(lambda: engine.scheduler.stats().num_preemptions_total == 1)
        assert low.status is SequenceStatus.WAITING
        assert high.status is SequenceStatus.RUNNING
        assert (low.num_computed_tokens, low.block_table, low.rope_alpha) == (0, [], 3.0)
        assert low.num_output_tokens > 0
        engine.run()
        assert list(engine.finished) == [high.seq_id, low.seq_id]

    def test_not_back_in_the_same_step(self) -> None:
        """It could: with others' equal blocks it needs fewer than it gave. `FakeEngine.step` watches."""
        engine = FakeEngine(num_blocks=20, block_size=2)
        for priority in (0, 1, 0):
            engine.add([1] * 4 + [2] * priority, max_tokens=12, priority=priority)
        engine.run()
        assert engine.scheduler.stats().num_preemptions_total > 0

    def test_cached_tokens_reported_are_those_of_the_first_admission(self) -> None:
        engine = FakeEngine(num_blocks=8, block_size=2)
        engine.add([1] * 3, max_tokens=9)
        (low,) = engine.add([2] * 3, max_tokens=9)
        engine.run()
        assert engine.scheduler.stats().num_preemptions_total > 0
        assert low.num_cached_tokens == 0

    def test_by_a_prompt_that_must_be_scored_again(self) -> None:
        engine = FakeEngine(num_blocks=8, block_size=2, max_num_batched_tokens=3)
        engine.add([2] * 3, max_tokens=9)
        engine.step()
        (scored,) = engine.add([1] * 9, max_tokens=2, num_prompt_logprobs=1)
        engine.step()
        engine.step()
        assert 0 < scored.num_computed_tokens < 9
        engine.run()
        assert engine.scheduler.stats().num_preemptions_total > 0

    def test_once_scored_a_prompt_may_come_from_the_cache(self) -> None:
        engine = FakeEngine(num_blocks=12, block_size=2)
        engine.add([2] * 3, max_tokens=14)
        (scored,) = engine.add([1] * 9, max_tokens=8, num_prompt_logprobs=1)
        engine.step_until(lambda: engine.scheduler.stats().num_preemptions_total == 1)
        assert scored.num_output_tokens > 0
        batches: list[ScheduledBatch] = []
        while not batches or batches[-1].entries[-1].seq_id != scored.seq_id:
            batches.append(engine.step()[0])
        assert batches[-1].entries[-1].start > 0
        engine.run()


class TestBlockedAdmission:
    def test_who_waits_for_room_is_looked_up_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        engine = FakeEngine(num_blocks=33, block_size=4)
        engine.add([1] * 60, max_tokens=1)
        engine.run()
        engine.add([2] * 50, max_tokens=40)
        engine.step()
        (blocked,) = engine.add([1] * 80, max_tokens=4)
        num_lookups = 0

        class Counting(dict[Any, int]):
            def get(self, key: Any, default: Any = None) -> Any:
                nonlocal num_lookups
                num_lookups += key[0] == blocked.cache_root and key[1] == (1, 1, 1, 1)  # where a walk begins
                return super().get(key, default)

        monkeypatch.setattr(engine.blocks, "_block_of_key", Counting(engine.blocks._block_of_key))
        for _ in range(15):
            engine.step()
        assert blocked.status is SequenceStatus.WAITING
        assert num_lookups == 1
        engine.run()


class TestChoices:
    @pytest.mark.parametrize(("caching", "max_tokens"), [(True, 0), (False, 1), (True, 3)])
    def test_a_prompt_is_computed_once_for_128(self, caching: bool, max_tokens: int) -> None:
        engine = FakeEngine(num_blocks=4096, block_size=16, caching=caching, max_num_seqs=32)
        prompt = [i % 7 for i in range(1000)]
        seqs = engine.add(prompt, n=128, max_tokens=max_tokens)
        engine.run()
        tail = 1000 - 999 // 16 * 16
        assert engine.num_computed_tokens == 1000 + 127 * tail + 128 * max(0, max_tokens - 1)
        assert [seq.num_cached_tokens for seq in seqs] == [0] + [1000 - tail] * 127
        assert engine.scheduler.stats().num_preemptions_total == 0

    def test_followers_do_not_hold_up_others(self) -> None:
        engine = FakeEngine(max_num_batched_tokens=16)
        engine.add([1] * 40, n=3)
        (other,) = engine.add([2], max_tokens=1)
        engine.step_until(lambda: other.seq_id in engine.finished)
        assert engine.num_computed_tokens <= 16 * 3

    def test_they_outlive_an_aborted_leader(self) -> None:
        for num_steps in range(4):
            engine = FakeEngine(max_num_batched_tokens=8, caching=False)
            leader, *others = engine.add([1] * 20, n=4)
            for _ in range(num_steps):
                engine.step()
            engine.abort([leader.seq_id])
            engine.run()
            assert list(engine.finished) == [seq.seq_id for seq in others]
            # What the leader left undone is computed by one of them, not by each.
            lost = min(20, 8 * num_steps) if num_steps < 3 else 0
            assert engine.num_computed_tokens < lost + 20 + 3 * 4 + 4 * 8

    def test_abort_of_all_at_once_and_twice(self) -> None:
        engine = FakeEngine()
        seqs = engine.add([1] * 9, n=5)
        engine.abort([seq.seq_id for seq in seqs] * 2 + [12345])
        assert not engine.scheduler.has_work()
        assert not engine.scheduler.schedule()
        assert engine.scheduler.abort([seqs[0].seq_id]) == []

    def test_scored_prompts_are_computed_by_each(self) -> None:
        engine = FakeEngine()
        seqs = engine.add([1] * 9, n=3, max_tokens=1, num_prompt_logprobs=2)
        engine.run()
        assert engine.num_computed_tokens == 27
        assert {seq.num_cached_tokens for seq in seqs} == {0}

    def test_waiting_choices_give_their_prompt_up_rather_than_block(self) -> None:
        """The leader is gone, its choices wait with the prompt, and an important sequence needs the whole pool."""
        engine = FakeEngine(num_blocks=8, block_size=2, caching=False, max_num_seqs=1)
        engine.add([1] * 9, n=4, max_tokens=1, priority=1)
        engine.step()
        assert engine.blocks.num_free_blocks == 4
        (urgent,) = engine.add([2] * 11, max_tokens=5)
        engine.step()
        assert urgent.status is SequenceStatus.RUNNING
        check_scheduler(engine.scheduler)
        engine.run()
        # Given up, the prompt is computed once more, not three times.
        assert engine.num_computed_tokens == 9 + (11 + 4) + 9 + 2 * 1

    def test_only_the_least_important_prompt_is_given_up(self) -> None:
        engine = FakeEngine(num_blocks=12, block_size=2, caching=False, max_num_seqs=2)
        engine.add([1] * 9, n=2, max_tokens=1, priority=1)
        engine.add([2] * 9, n=2, max_tokens=1, priority=1)
        engine.step()
        assert engine.blocks.num_free_blocks == 4
        engine.add([3] * 11, max_tokens=5)
        engine.run()
        assert engine.num_computed_tokens == 2 * 9 + (11 + 4) + 1 + 9

    def test_and_a_running_sequence_gets_it_too(self) -> None:
        engine = FakeEngine(num_blocks=8, block_size=2, caching=False, max_num_seqs=1)
        (first,) = engine.add([2] * 2, max_tokens=12, priority=-1)
        engine.step()
        engine.scheduler.residents.callers.max_num_seqs = 2
        seqs = engine.add([1] * 9, n=3, max_tokens=1)
        engine.step()
        engine.scheduler.residents.callers.max_num_seqs = 1
        assert seqs[0].seq_id in engine.finished
        engine.step_until(lambda: first.seq_id in engine.finished)
        engine.run()
        assert engine.scheduler.stats().num_preemptions_total == 0


class TestAbort:
    def test_while_a_step_runs(self) -> None:
        engine = FakeEngine()
        (gone,), (stays,) = engine.add([1] * 9), engine.add([2] * 9)
        _, updates = engine.step(abort=[gone.seq_id])
        assert [update.seq for update in updates] == [stays]
        assert engine.scheduler.stats().num_running == 1
        engine.run()

    def test_blocks_are_free_at_once(self) -> None:
        engine = FakeEngine(caching=False)
        (seq,) = engine.add([1] * 9)
        engine.step()
        assert engine.blocks.num_free_blocks < engine.blocks.num_blocks
        engine.abort([seq.seq_id])
        assert engine.blocks.num_free_blocks == engine.blocks.num_blocks


def test_prefix_cache_saves_work() -> None:
    engine = FakeEngine()
    engine.add([1] * 30, max_tokens=2)
    engine.run()
    (again,) = engine.add([1] * 30, max_tokens=2)
    (other,) = engine.add([1] * 30, max_tokens=2, alpha=3.0)
    engine.run()
    assert (again.num_cached_tokens, other.num_cached_tokens) == (28, 0)
    stats = engine.scheduler.stats()
    assert (stats.prefix_cache_queries_total, stats.prefix_cache_hits_total) == (90, 28)


def test_stats() -> None:
    engine = FakeEngine(num_blocks=16, block_size=4, max_num_seqs=2, caching=False)
    engine.add([1] * 5, n=2)
    engine.add([2] * 5)
    engine.add([3] * 5)
    engine.step()
    stats = engine.scheduler.stats()
    assert (stats.num_running, stats.num_waiting) == (2, 2)
    assert (stats.num_blocks, stats.num_free_blocks, stats.num_cached_blocks) == (16, 12, 0)
    assert (stats.num_steps_total, stats.num_step_tokens, stats.num_preemptions_total) == (1, 10, 0)
    engine.run()
    num_steps = engine.scheduler.stats().num_steps_total
    assert not engine.scheduler.schedule()
    assert replace(engine.scheduler.stats(), num_free_blocks=0) == replace(
        engine.scheduler.stats(),
        num_running=0,
        num_waiting=0,
        num_free_blocks=0,
        num_steps_total=num_steps,
        num_step_tokens=0,
    )


def test_waiting_time_is_known() -> None:
    engine = FakeEngine(max_num_seqs=1)
    (first,), (second,) = engine.add([1], max_tokens=3), engine.add([2])
    engine.step()
    assert first.first_scheduled_time_s is not None
    assert first.first_scheduled_time_s >= first.arrival_time_s
    assert second.first_scheduled_time_s is None
    engine.run()


def test_check_integrity_notices() -> None:
    engine = FakeEngine()
    (seq,) = engine.add([1] * 5)
    seq.status = SequenceStatus.RUNNING
    with pytest.raises(RuntimeError, match="waiting states"):
        check_scheduler(engine.scheduler)


REQUEST = st.fixed_dictionaries(
    {
        # Few prompts, so that they share beginnings; long ones, so that they fill small pools.
        "caller": st.sampled_from(["a", "a", "b", "batch"]),
        "weight": st.sampled_from([1, 1, 3]),
        "prompt": st.builds(
            lambda head, tail: [1, 2, 3, 4, 1, 1, 2, 1, 3, 2, 4, 4, 2, 3, 1, 4, 2, 2, 1, 3][:head] + tail,
            st.integers(0, 20),
            st.lists(st.integers(1, 2), min_size=1, max_size=4),
        ),
        "n": st.sampled_from([1, 1, 1, 2, 3, 5]),
        "max_tokens": st.integers(0, 12),
        "priority": st.integers(-1, 1),
        "alpha": st.sampled_from([1.0, 1.0, 3.0]),
        "salt": st.sampled_from(["", "", "adapter"]),
        "num_prompt_logprobs": st.sampled_from([None, None, None, 0]),
        "eos_token_ids": st.sampled_from([(), (EOS,)]),
        "ignore_eos": st.booleans(),
    }
)
LIMITS = st.fixed_dictionaries(
    {
        "num_blocks": st.integers(4, 40),
        "block_size": st.sampled_from([1, 2, 4, 16]),
        "caching": st.booleans(),
        "max_num_seqs": st.integers(1, 6),
        "max_num_batched_tokens": st.sampled_from([1, 2, 3, 5, 8, 30, 100]),
        "max_model_len": st.sampled_from([12, 24, 1000]),
        "max_running_per_caller": st.sampled_from([None, None, 1, 2]),
        "allow_priority": st.booleans(),
        "speculates": st.booleans(),
        "window": st.sampled_from([None, None, 1, 5, 12]),
    }
)


class SchedulerMachine(RuleBasedStateMachine):
    """Anything may come at any time; all that is not aborted must end as if it had been alone."""

    @initialize(limits=LIMITS)
    def start(self, limits: dict[str, int]) -> None:
        self.engine = FakeEngine(**limits)
        self.expected: set[int] = set()

    @rule(request=REQUEST)
    def add(self, request: dict[str, object]) -> None:
        try:
            seqs = self.engine.add(**request)  # type: ignore[arg-type]
        except InvalidRequestError:
            return
        self.expected |= {seq.seq_id for seq in seqs}

    @rule(num_steps=st.integers(1, 4))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.engine.step()

    @rule(choice=st.lists(st.integers(0, 99), min_size=1, max_size=3), is_midstep=st.booleans())
    def abort(self, choice: list[int], is_midstep: bool) -> None:
        live = sorted(self.engine.live)
        seq_ids = [live[i % len(live)] for i in choice] if live else [77]
        if is_midstep:
            self.engine.step(abort=seq_ids)
        else:
            self.engine.abort(seq_ids)
        self.expected -= set(seq_ids)

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "engine"):
            check_scheduler(self.engine.scheduler)

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.engine.run()
            assert self.expected <= self.engine.finished.keys()


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=100, stateful_step_count=25)


@given(requests=st.lists(REQUEST, min_size=1, max_size=8), limits=LIMITS)
@settings(max_examples=100)
def test_output_depends_on_no_limit(requests: list[dict[str, object]], limits: dict[str, int]) -> None:
    """The same requests, all at once: with and without caching, in a large pool and a small one."""
    outputs = []
    small = {**limits, "max_model_len": 24, "num_blocks": -(-40 // limits["block_size"])}
    other = {**small, "caching": not small["caching"], "speculates": not small["speculates"]}
    for changed in (small, other, {"num_blocks": 4096, "max_model_len": 24}):
        engine = FakeEngine(**changed)
        for request in requests:
            try:
                engine.add(**request)  # type: ignore[arg-type]
            except InvalidRequestError:
                engine.num_made += 100
        engine.run()
        outputs.append(engine.finished)
    assert outputs[0] == outputs[1] == outputs[2]


class TestWindow:
    """Where no layer reads further back, what a window has passed is somebody else's."""

    def test_a_sequence_may_be_longer_than_the_pool(self) -> None:
        engine = FakeEngine(num_blocks=10, block_size=4, max_num_batched_tokens=16, window=8)
        engine.add([1 + i % 3 for i in range(300)], max_tokens=100, ignore_eos=True)
        engine.run()
        assert [len(output) for output, _ in engine.finished.values()] == [100]
        assert engine.scheduler.stats().num_preemptions_total == 0

    def test_what_is_passed_serves_others(self) -> None:
        """Four at a time, of which without a window only one would fit."""
        engine = FakeEngine(num_blocks=40, block_size=4, caching=False, max_num_batched_tokens=8, window=8)
        for i in range(4):
            engine.add([1 + (i + k) % 3 for k in range(120)], max_tokens=30, ignore_eos=True)
        engine.run()
        assert engine.scheduler.stats().num_preemptions_total == 0

    def test_cached_starts_are_found_and_only_their_end_is_held(self) -> None:
        prompt = [1 + i % 3 for i in range(100)]
        engine = FakeEngine(num_blocks=64, block_size=4, max_num_batched_tokens=16, window=8)
        engine.add(prompt, max_tokens=1)
        engine.run()
        (again,) = engine.add(prompt, max_tokens=3, ignore_eos=True)
        engine.step()
        assert again.num_cached_tokens == 96
        assert len(again.held_blocks) <= 5
        engine.run()

    def test_choices_share_the_end_of_a_prompt(self) -> None:
        engine = FakeEngine(num_blocks=24, block_size=4, max_num_batched_tokens=8, window=5)
        engine.add([1 + i % 3 for i in range(90)], n=4, max_tokens=9)
        engine.run()
        assert len(engine.finished) == 4


def test_a_crowd_in_a_small_pool_all_ends() -> None:
    engine = FakeEngine(num_blocks=24, block_size=2, max_num_batched_tokens=7, max_num_seqs=12)
    for i in range(40):
        engine.add([1 + i % 3] * (1 + i % 17), n=1 + i % 3, max_tokens=1 + i % 11, priority=i % 3)
    engine.run()
    assert Counter(reason for _, reason in engine.finished.values()) == {"length": 79}
    assert engine.scheduler.stats().num_preemptions_total > 10
