"""The block manager against a plain model of what it promises, and the promises one by one."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from model.contract.sampling_params import SamplingParams
from model.scheduling.block_manager import BlockManager
from model.scheduling.free_extents import FreeExtents
from model.scheduling.sequence import Sequence

SAMPLING = SamplingParams(max_tokens=1000)
PROFILE = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True, database=None)


def make_sequence(token_ids: list[int], seq_id: int = 0, alpha: float = 1.0, salt: str = "") -> Sequence:
    return Sequence(seq_id, "request", token_ids, SAMPLING, rope_alpha=alpha, cache_salt=salt)


def compute(manager: BlockManager, seq: Sequence) -> None:
    """As if a step had computed all of a sequence."""
    assert manager.allocate(seq, seq.num_tokens)
    seq.num_computed_tokens = seq.num_tokens
    manager.commit(seq)


def admit(manager: BlockManager, seq: Sequence) -> int:
    """Returns how many tokens came from the prefix cache."""
    manager.adopt_prefix(seq, manager.match_prefix(seq))
    num_cached = seq.num_computed_tokens
    compute(manager, seq)
    return num_cached


def num_runs(seq: Sequence) -> int:
    return 1 + sum(right != left + 1 for left, right in pairwise(seq.block_table))


class TestFreeExtents:
    @given(st.integers(1, 70), st.randoms(use_true_random=False))
    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    def test_against_a_set(self, num_blocks: int, rng: random.Random) -> None:
        extents, free = FreeExtents(num_blocks), set(range(num_blocks))
        for _ in range(120):
            match rng.randrange(3):
                case 0:
                    start, count = rng.randrange(num_blocks), rng.randrange(1, 9)
                    taken = extents.take_at(start, count)
                    assert taken == 0 if start not in free or start - 1 in free else taken > 0
                case 1 if free:
                    count, room = rng.randrange(1, 9), rng.randrange(1, 20)
                    start, taken = extents.take_from_largest(count, room)
                    assert 1 <= taken <= count
                case _ if len(free) < num_blocks:
                    block = rng.choice(sorted(set(range(num_blocks)) - free))
                    start, end = extents.release(block)
                    free.add(block)
                    assert set(range(start, end)) <= free
                    assert not {start - 1, end} & free
                    taken = 0
                case _:
                    taken = 0
            took = set(range(start, start + taken)) if taken else set()
            assert took <= free
            free -= took
            assert extents.num_blocks == len(free)
            assert {block for begin, end in extents.extents() for block in range(begin, end)} == free
            extents.check_integrity()

    def test_largest_is_hardly_smaller_than_the_largest(self) -> None:
        extents, rng = FreeExtents(1000), random.Random(0)
        for _ in range(300):
            extents.take_from_largest(rng.randrange(1, 4), 1)
            start, end = extents.largest()
            assert 5 * (end - start) >= 4 * max((e - s for s, e in extents.extents()), default=0)

    def test_empty(self) -> None:
        extents = FreeExtents(3)
        assert extents.take_at(0, 9) == 3
        assert extents.largest() == (0, 0)
        assert extents.take_at(0, 1) == 0


class TestPlacement:
    def test_sequences_that_grow_side_by_side_stay_in_one_run(self) -> None:
        manager = BlockManager(1024, 4, enable_prefix_caching=False)
        seqs = [make_sequence([1] * 8, i) for i in range(16)]
        for _ in range(60):
            for seq in seqs:
                assert manager.allocate(seq, seq.num_tokens)
                seq.token_ids.extend([1, 1])
        assert [num_runs(seq) for seq in seqs] == [1] * 16

    def test_a_prompt_and_its_reply_are_one_run_after_others_ended(self) -> None:
        manager = BlockManager(64, 1, enable_prefix_caching=False)
        first, second = make_sequence([1] * 10), make_sequence([1] * 10)
        manager.allocate(first, 10)
        manager.allocate(second, 10)
        manager.free(first)
        third = make_sequence([1] * 20)
        manager.allocate(third, 20)
        manager.allocate(third, 25)
        assert num_runs(third) == 1

    def test_a_next_turn_continues_behind_the_cached_one(self) -> None:
        manager = BlockManager(256, 4, enable_prefix_caching=True)
        turn = make_sequence(list(range(30)))
        compute(manager, turn)
        manager.free(turn)
        following = make_sequence([*range(30), *range(100, 140)])
        assert admit(manager, following) == 28
        assert num_runs(following) == 1

    def test_runs_stay_long_once_the_cache_is_full(self) -> None:
        manager, rng = BlockManager(2000, 16, enable_prefix_caching=True), random.Random(1)
        live: list[tuple[Sequence, int]] = []
        ended: list[Sequence] = []
        runs: list[float] = []
        while len(ended) < 400:
            while len(live) < 8:
                seq = make_sequence([rng.randrange(10**6) for _ in range(16 * rng.randrange(2, 60))])
                compute(manager, seq)
                live.append((seq, seq.num_tokens + 16 * rng.randrange(1, 30)))
            for seq, end in live.copy():
                seq.token_ids.extend(range(16))
                compute(manager, seq)
                if seq.num_tokens >= end:
                    runs.append(num_runs(seq))
                    ended.append(seq)
                    live.remove((seq, end))
                    manager.free(seq)
        assert manager.num_cached_blocks > 1000
        assert sum(runs[200:]) / len(runs[200:]) < 4  # strict LRU makes it 29

    @pytest.mark.parametrize("caching", [False, True])
    def test_cost_does_not_grow_with_the_pool(self, caching: bool) -> None:
        """About 1 microsecond a block, 3 with a full cache; the bound only excludes walking over the pool."""
        manager = BlockManager(100_000, 16, caching)
        spent_s, num_allocated = 0.0, 0
        for round_index in range(3):
            seqs = [make_sequence([round_index, i, *range(3000)], i) for i in range(256)]
            for growth in range(2):
                started = time.perf_counter()
                for seq in seqs:
                    assert manager.allocate(seq, seq.num_tokens)
                spent_s += time.perf_counter() - started
                for seq in seqs:
                    seq.num_computed_tokens = seq.num_tokens
                    manager.commit(seq)
                    seq.token_ids.extend(range(16 * 20))
                num_allocated += 256 * (188 if growth == 0 else 20)
            for seq in seqs:
                manager.free(seq)
        assert spent_s / num_allocated < 50e-6


class TestPrefixCache:
    def test_one_token_is_always_left_to_compute(self) -> None:
        manager = BlockManager(32, 4, enable_prefix_caching=True)
        seq = make_sequence(list(range(12)))
        compute(manager, seq)
        for length, num_matched in ((13, 3), (12, 2), (9, 2), (8, 1), (5, 1), (4, 0), (1, 0)):
            assert len(manager.match_prefix(make_sequence(list(range(20))[:length]))) == num_matched

    def test_only_computed_full_blocks_are_cached(self) -> None:
        manager = BlockManager(32, 4, enable_prefix_caching=True)
        seq = make_sequence(list(range(12)))
        manager.allocate(seq, 12)
        manager.commit(seq)
        assert manager.match_prefix(make_sequence(list(range(20)))) == []
        seq.num_computed_tokens = 7
        manager.commit(seq)
        assert manager.match_prefix(make_sequence(list(range(20)))) == seq.block_table[:1]

    def test_content_alpha_and_salt_separate(self) -> None:
        manager = BlockManager(64, 2, enable_prefix_caching=True)
        compute(manager, make_sequence([1, 2, 3, 4, 5], alpha=3.0, salt="adapter"))
        assert len(manager.match_prefix(make_sequence([1, 2, 3, 4, 9], alpha=3.0, salt="adapter"))) == 2
        assert manager.match_prefix(make_sequence([1, 2, 3, 4, 9], alpha=1.0, salt="adapter")) == []
        assert manager.match_prefix(make_sequence([1, 2, 3, 4, 9], alpha=3.0)) == []
        # Equal tokens in another place are another block.
        assert manager.match_prefix(make_sequence([3, 4, 9], alpha=3.0, salt="adapter")) == []

    def test_blocks_outlive_their_sequence_until_needed(self) -> None:
        manager = BlockManager(4, 2, enable_prefix_caching=True)
        seq = make_sequence([1, 2, 3, 4, 5])
        compute(manager, seq)
        assert (manager.num_free_blocks, manager.num_cached_blocks) == (1, 0)
        manager.free(seq)
        assert (manager.num_free_blocks, manager.num_cached_blocks) == (4, 2)
        other = make_sequence([7] * 6)
        compute(manager, other)
        # The chain's leaf went first, its head is still of use.
        assert len(manager.match_prefix(make_sequence([1, 2, 3, 4, 5]))) == 1
        assert manager.num_cached_blocks == 1

    def test_growth_takes_a_stale_neighbour(self) -> None:
        manager = BlockManager(12, 1, enable_prefix_caching=True)
        for tokens in ([1, 2, 3, 4, 5, 6], [11, 12, 13, 14, 15, 16]):
            seq = make_sequence(tokens)
            compute(manager, seq)
            manager.free(seq)
        growing = make_sequence([1, 2, 3, 4, 99])
        assert admit(manager, growing) == 4
        assert growing.block_table == [0, 1, 2, 3, 4]
        assert manager.num_cached_blocks == 7

    def test_making_room_stops_at_a_fresh_neighbour(self) -> None:
        manager = BlockManager(256, 1, enable_prefix_caching=True)
        first, second = make_sequence(list(range(128))), make_sequence(list(range(128, 256)))
        for seq in (first, second):
            compute(manager, seq)
        for seq in (first, second):
            manager.free(seq)
        user = make_sequence(list(range(127)))
        manager.adopt_prefix(user, manager.match_prefix(user))
        manager.free(user)
        # Blocks 126 and 127 are the oldest, those before were used again, those behind fell idle last.
        newcomer = make_sequence([999] * 4)
        manager.allocate(newcomer, 4)
        assert newcomer.block_table == [126, 127, 252, 253]
        assert len(manager.match_prefix(first)) == 126

    def test_growth_spares_a_fresh_neighbour(self) -> None:
        manager = BlockManager(12, 1, enable_prefix_caching=True)
        seq = make_sequence(list(range(12)))
        compute(manager, seq)
        manager.free(seq)
        growing = make_sequence([0, 1, 2, 3, 99])
        assert admit(manager, growing) == 4
        assert growing.block_table == [0, 1, 2, 3, 11]
        assert len(manager.match_prefix(make_sequence(list(range(12))))) == 11

    def test_a_recomputed_parent_does_not_adopt_orphans(self) -> None:
        manager = BlockManager(4, 1, enable_prefix_caching=True)
        seq = make_sequence([1, 2, 3])
        compute(manager, seq)
        head, middle = seq.block_table[:2]
        holder = make_sequence([1, 2, 3])  # keeps the head's child referenced, as a foreign table might
        holder.block_table = [middle]
        manager._ref_counts[middle] += 1
        manager.free(seq)
        manager._evict(head)
        compute(manager, make_sequence([1, 9], seq_id=1))
        assert len(manager.match_prefix(make_sequence([1, 2, 3]))) == 1

    def test_equal_prompts_at_once_keep_their_own_blocks(self) -> None:
        manager = BlockManager(16, 2, enable_prefix_caching=True)
        seqs = [make_sequence([1, 2, 3, 4, 5], i) for i in range(2)]
        for seq in seqs:
            compute(manager, seq)
        assert not set(seqs[0].block_table) & set(seqs[1].block_table)
        manager.check_integrity(seqs)
        manager.free(seqs[1])
        assert manager.num_cached_blocks == 0
        manager.check_integrity(seqs)

    def test_it_counts_queries_and_hits_of_first_admissions(self) -> None:
        manager = BlockManager(32, 4, enable_prefix_caching=True)
        seq = make_sequence(list(range(10)))
        assert admit(manager, seq) == 0
        seq.first_scheduled_time_s = 0.0
        manager.free(seq)
        assert admit(manager, seq) == 8
        assert (manager.prefix_cache_queries_total, manager.prefix_cache_hits_total) == (10, 0)
        assert admit(manager, make_sequence(list(range(10)))) == 8
        assert (manager.prefix_cache_queries_total, manager.prefix_cache_hits_total) == (20, 8)

    def test_off(self) -> None:
        manager = BlockManager(32, 4, enable_prefix_caching=False)
        seq = make_sequence(list(range(10)))
        compute(manager, seq)
        assert manager.match_prefix(make_sequence(list(range(10)))) == []
        manager.free(seq)
        assert (manager.num_free_blocks, manager.num_cached_blocks) == (32, 0)


class TestCapacity:
    def test_a_failed_allocation_changes_nothing(self) -> None:
        manager = BlockManager(4, 2, enable_prefix_caching=True)
        cached = make_sequence([1, 2, 3, 4])
        compute(manager, cached)
        manager.free(cached)
        seq = make_sequence([9] * 9)
        assert not manager.allocate(seq, 9)
        assert seq.block_table == []
        assert (manager.num_free_blocks, manager.num_cached_blocks) == (4, 2)
        assert manager.allocate(seq, 8)

    def test_an_idle_cached_prefix_is_no_free_block_as_well(self) -> None:
        manager = BlockManager(4, 2, enable_prefix_caching=True)
        cached = make_sequence([1, 2, 3, 4])
        compute(manager, cached)
        manager.free(cached)
        seq = make_sequence([1, 2, 3, 4, 5, 6, 7, 8])
        prefix = manager.match_prefix(seq)
        assert len(prefix) == 2
        assert manager.can_admit(seq, prefix, 0)
        assert not manager.can_admit(seq, prefix, 1)
        assert not manager.can_admit(make_sequence([9] * 9), [], 0)

    @pytest.mark.parametrize("caching", [False, True])
    def test_a_fork_shares_the_prompt_and_leaves_its_last_token(self, caching: bool) -> None:
        for length, num_shared in ((9, 2), (8, 1), (5, 1), (4, 0)):
            manager = BlockManager(32, 4, enable_prefix_caching=caching)
            leader, seq = make_sequence([1] * length), make_sequence([1] * length, 1)
            compute(manager, leader)
            manager.fork_prefix(leader, seq)
            assert seq.block_table == leader.block_table[:num_shared]
            assert seq.num_computed_tokens == 4 * num_shared
            assert seq.cache_chain == leader.cache_chain[:num_shared]
            manager.check_integrity([leader, seq])
            manager.free(leader)
            manager.check_integrity([seq])
            manager.free(seq)
            assert manager.num_free_blocks == 32

    @pytest.mark.parametrize(("num_blocks", "block_size"), [(0, 16), (4, 0)])
    def test_an_empty_pool_is_refused(self, num_blocks: int, block_size: int) -> None:
        with pytest.raises(ValueError, match="a pool needs"):
            BlockManager(num_blocks, block_size, enable_prefix_caching=True)


def _leak(manager: BlockManager, seq: Sequence) -> None:
    seq.block_table.pop()


def _share_wrongly(manager: BlockManager, seq: Sequence) -> None:
    manager._ref_counts[seq.block_table[0]] += 1


def _free_twice(manager: BlockManager, seq: Sequence) -> None:
    manager._free.release(seq.block_table[-1])


def _swap_tokens(manager: BlockManager, seq: Sequence) -> None:
    seq.token_ids[0] += 1


def _swap_alpha(manager: BlockManager, seq: Sequence) -> None:
    seq.rope_alpha = 7.0


def _swap_blocks(manager: BlockManager, seq: Sequence) -> None:
    seq.block_table[0], seq.block_table[1] = seq.block_table[1], seq.block_table[0]


def _lose_cache_key(manager: BlockManager, seq: Sequence) -> None:
    manager._block_of_key.popitem()


def _repeat_block(manager: BlockManager, seq: Sequence) -> None:
    seq.block_table.append(seq.block_table[0])


def _claim_too_much(manager: BlockManager, seq: Sequence) -> None:
    seq.num_computed_tokens = 1000


@pytest.mark.parametrize(
    "damage",
    [
        _leak,
        _share_wrongly,
        _free_twice,
        _swap_tokens,
        _swap_alpha,
        _swap_blocks,
        _lose_cache_key,
        _repeat_block,
        _claim_too_much,
    ],
)
def test_check_integrity_notices(damage: Callable[[BlockManager, Sequence], None]) -> None:
    manager = BlockManager(16, 2, enable_prefix_caching=True)
    seq = make_sequence([1, 2, 3, 4, 5])
    compute(manager, seq)
    manager.check_integrity([seq])
    damage(manager, seq)
    with pytest.raises(RuntimeError, match="inconsistent"):
        manager.check_integrity([seq])


class BlockManagerMachine(RuleBasedStateMachine):
    """Random life of sequences; `content` is what each block of a real cache would hold."""

    @initialize(
        num_blocks=st.integers(1, 24),
        block_size=st.sampled_from([1, 2, 4, 16]),
        caching=st.booleans(),
    )
    def start(self, num_blocks: int, block_size: int, caching: bool) -> None:
        self.manager = BlockManager(num_blocks, block_size, caching)
        self.live: list[Sequence] = []
        self.content: dict[int, tuple[float, str, tuple[int, ...]]] = {}
        self.num_made = 0

    def _write(self, seq: Sequence, start: int) -> None:
        size = self.manager.block_size
        for index in range(start // size, len(seq.block_table)):
            self.content[seq.block_table[index]] = self._expected(seq, index)

    def _expected(self, seq: Sequence, index: int) -> tuple[float, str, tuple[int, ...]]:
        end = (index + 1) * self.manager.block_size
        return seq.rope_alpha, seq.cache_salt, tuple(seq.token_ids[:end])

    @rule(
        blocks=st.lists(st.integers(0, 1), max_size=6),
        tail=st.integers(1, 17),
        alpha=st.sampled_from([1.0, 3.0]),
        salt=st.sampled_from(["", "adapter"]),
    )
    def admit(self, blocks: list[int], tail: int, alpha: float, salt: str) -> None:
        size = self.manager.block_size
        self.num_made += 1
        seq = make_sequence([t for t in blocks for _ in range(size)] + [5] * tail, self.num_made, alpha, salt)
        prefix = self.manager.match_prefix(seq)
        if not self.manager.can_admit(seq, prefix, 0):
            return
        self.manager.adopt_prefix(seq, prefix)
        self.live.append(seq)
        assert self.manager.allocate(seq, seq.num_tokens)
        start, seq.num_computed_tokens = seq.num_computed_tokens, seq.num_tokens
        self._write(seq, start)
        self.manager.commit(seq)

    @rule(which=st.integers(0, 99), count=st.integers(1, 9), token=st.integers(0, 1))
    def grow(self, which: int, count: int, token: int) -> None:
        if not self.live:
            return
        seq = self.live[which % len(self.live)]
        if not self.manager.allocate(seq, seq.num_tokens + count):
            return
        seq.token_ids.extend([token] * count)
        start, seq.num_computed_tokens = seq.num_computed_tokens, seq.num_tokens
        self._write(seq, start)
        self.manager.commit(seq)

    @rule(which=st.integers(0, 99))
    def fork(self, which: int) -> None:
        if not self.live:
            return
        leader = self.live[which % len(self.live)]
        self.num_made += 1
        seq = make_sequence(leader.prompt_ids, self.num_made, leader.rope_alpha, leader.cache_salt)
        self.manager.fork_prefix(leader, seq)
        self.live.append(seq)

    @rule(which=st.integers(0, 99))
    def free(self, which: int) -> None:
        if self.live:
            self.manager.free(self.live.pop(which % len(self.live)))

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "manager"):
            return
        self.manager.check_integrity(self.live)
        for seq in self.live:
            for index in range(seq.num_computed_tokens // self.manager.block_size):
                assert self.content[seq.block_table[index]] == self._expected(seq, index)


TestBlockManagerMachine = BlockManagerMachine.TestCase
TestBlockManagerMachine.settings = PROFILE
