"""The block manager against a plain model of what it promises, and the promises one by one."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from model.contract.sampling_params import SamplingParams
from model.scheduling.block_manager import BlockManager
from model.scheduling.sequence import NO_BLOCK, Sequence
from tests.support.scheduling_integrity import check_blocks

SAMPLING = SamplingParams(max_tokens=1000)
PROFILE = settings(max_examples=60, stateful_step_count=40)


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


class TestPlacement:
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

    def test_what_has_been_idle_longest_is_taken_first(self) -> None:
        manager = BlockManager(12, 1, enable_prefix_caching=True)
        first, second = make_sequence(list(range(6))), make_sequence(list(range(10, 16)))
        for seq in (first, second):
            compute(manager, seq)
            manager.free(seq)
        admit(manager, make_sequence([*range(6), 99], seq_id=1))  # which uses the first one's blocks again
        assert len(manager.match_prefix(make_sequence([*range(10, 16), 1]))) == 5
        assert len(manager.match_prefix(make_sequence([*range(6), 1]))) == 6

    def test_a_recomputed_parent_does_not_adopt_orphans(self) -> None:
        manager = BlockManager(4, 1, enable_prefix_caching=True)
        seq = make_sequence([1, 2, 3])
        compute(manager, seq)
        head, middle = seq.block_table[:2]
        holder = make_sequence([1, 2, 3])  # keeps the head's child referenced, as a foreign table might
        holder.block_table = [middle]
        manager._ref_counts[middle] += 1
        manager.free(seq)
        manager._evictable.move_to_end(head, last=False)
        manager._evict()
        compute(manager, make_sequence([1, 9], seq_id=1))
        assert len(manager.match_prefix(make_sequence([1, 2, 3]))) == 1

    def test_equal_prompts_at_once_keep_their_own_blocks(self) -> None:
        manager = BlockManager(16, 2, enable_prefix_caching=True)
        seqs = [make_sequence([1, 2, 3, 4, 5], i) for i in range(2)]
        for seq in seqs:
            compute(manager, seq)
        assert not set(seqs[0].block_table) & set(seqs[1].block_table)
        check_blocks(manager, seqs)
        manager.free(seqs[1])
        assert manager.num_cached_blocks == 0
        check_blocks(manager, seqs)

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
            check_blocks(manager, [leader, seq])
            manager.free(leader)
            check_blocks(manager, [seq])
            manager.free(seq)
            assert manager.num_free_blocks == 32


def _leak(manager: BlockManager, seq: Sequence) -> None:
    seq.block_table.pop()


def _share_wrongly(manager: BlockManager, seq: Sequence) -> None:
    manager._ref_counts[seq.block_table[0]] += 1


def _free_twice(manager: BlockManager, seq: Sequence) -> None:
    manager._free.append(seq.block_table[-1])


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
    check_blocks(manager, [seq])
    damage(manager, seq)
    with pytest.raises(RuntimeError, match="inconsistent"):
        check_blocks(manager, [seq])


def test_a_start_that_is_used_again_outlives_one_that_is_not_where_windows_have_passed_it() -> None:
    """Its first blocks nobody holds any more, but who comes next finds the others by them."""
    manager = BlockManager(40, 2, enable_prefix_caching=True, largest_window=4, max_step_tokens=32)
    hot, cold = [1] * 24, [2] * 24
    for number, start in enumerate((hot, cold, hot)):
        seq = make_sequence([*start, 9], number)
        assert admit(manager, seq) == (24 if number == 2 else 0)
        manager.release_passed(seq, seq.num_tokens)
        manager.free(seq)
    other = make_sequence([3] * 50, 3)
    assert manager.allocate(other, 50)
    manager.free(other)
    assert admit(manager, make_sequence([*hot, 8], 4)) == 24
    assert admit(manager, make_sequence([*cold, 8], 5)) < 24


def test_an_idle_start_is_forgotten_from_its_end_where_a_window_has_passed_it() -> None:
    """While it ran, its first blocks fell idle before its last ones; once it has ended, they are of most use."""
    manager = BlockManager(20, 2, enable_prefix_caching=True, largest_window=4, max_step_tokens=4)
    prompt = [*range(24), 99]
    seq = make_sequence(prompt)
    for num_computed in range(4, 25, 4):
        assert manager.allocate(seq, num_computed)
        seq.num_computed_tokens = num_computed
        manager.commit(seq)
        manager.release_passed(seq, num_computed)
        check_blocks(manager, [seq])
    manager.free(seq)
    other = make_sequence([3] * 24, 1)
    assert manager.allocate(other, 24), "8 blocks are free, 12 idle: 4 of them are taken"
    manager.free(other)
    assert admit(manager, make_sequence(prompt, 2)) == 16


def test_check_integrity_notices_a_block_that_is_given_back_too_early() -> None:
    manager = BlockManager(16, 2, enable_prefix_caching=True, largest_window=4, max_step_tokens=8)
    seq = make_sequence(list(range(12)))
    compute(manager, seq)
    manager.release_passed(seq, seq.num_tokens)
    assert (seq.num_passed_blocks, manager.num_free_blocks) == (3, 13)
    check_blocks(manager, [seq])
    manager._release(seq.block_table[3:5])
    seq.block_table[3:5], seq.num_passed_blocks = [NO_BLOCK] * 2, 5
    with pytest.raises(RuntimeError, match="a block that is read is gone"):
        check_blocks(manager, [seq])


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
        prompt = leader.token_ids[: leader.num_prompt_tokens]
        seq = make_sequence(prompt, self.num_made, leader.rope_alpha, leader.cache_salt)
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
        check_blocks(self.manager, self.live)
        for seq in self.live:
            for index in range(seq.num_computed_tokens // self.manager.block_size):
                assert self.content[seq.block_table[index]] == self._expected(seq, index)


TestBlockManagerMachine = BlockManagerMachine.TestCase
TestBlockManagerMachine.settings = PROFILE
