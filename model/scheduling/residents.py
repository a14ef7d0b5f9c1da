"""Which sequences hold a slot and blocks of the KV cache, and which wait for them.

It exists so that who comes in and who has to go is one place: admission, preemption, and the choices of a request that
wait for a prompt which one of them computes. It must not know steps, tokens or when a sequence ends.

Pure: the standard library and other pure files of `model`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from model.scheduling.block_manager import BlockManager
from model.scheduling.callers import Caller, FairShare
from model.scheduling.sequence import Sequence, SequenceStatus


class Residents:
    """All sequences that have not ended.

    Those that run have blocks for all their tokens (with a window, for those of the next step). When one cannot get its
    next block, the least important sequence of the caller who holds most loses all of its own and waits again; its
    cache is recomputed later. One is always spared, so it goes on, and as every sequence is bounded, all end. A caller
    who holds less than its due gets slots and blocks of those who hold more in the same way.

    Args:
        max_num_seqs: the most sequences that run.
        allow_priority: let priorities count between callers too.

    Attributes:
        sequences: all sequences by id.
        callers: all callers, each with its running and waiting sequences.
        num_running: running sequences of all callers.
        num_preemptions_total: preemptions since the start.
    """

    def __init__(self, block_manager: BlockManager, max_num_seqs: int, allow_priority: bool) -> None:
        self.sequences: dict[int, Sequence] = {}
        self.callers = FairShare(block_manager, max_num_seqs, allow_priority)
        self.num_running = 0
        self.num_preemptions_total = 0
        self._blocks = block_manager
        # Left to those who run when another is admitted; into the last block, it would preempt somebody a step later.
        self._watermark = max(1, block_manager.num_blocks // 100)
        self._followers: dict[int, list[Sequence]] = {}  # by id of the leader whose prompt they wait for
        self._num_arrived = 0
        self._num_admitted = 0

    def enter(self, seqs: list[Sequence]) -> None:
        """Takes sequences in; the first is to compute the prompt, the others wait for its blocks."""
        for seq in seqs:
            self._num_arrived += 1
            seq.arrival_index = self._num_arrived
            self.sequences[seq.seq_id] = seq
            self.callers.enter(seq)
        self._wait_as_group(seqs)

    def leave(self, seq: Sequence) -> None:
        """Ends a sequence and frees its blocks; another takes over what it did for its followers."""
        del self.sequences[seq.seq_id]
        if seq.leader is not None and seq in (following := self._followers.get(seq.leader.seq_id, [])):
            following.remove(seq)
        self.num_running -= seq.status is SequenceStatus.RUNNING
        self.callers.leave(seq)
        self._blocks.free(seq)
        seq.status = SequenceStatus.FINISHED
        seq.leader = None
        if orphans := self._followers.pop(seq.seq_id, None):
            self._wait_as_group(orphans)

    def secure_blocks(self, running: list[Sequence]) -> list[Sequence]:
        """Gives running sequences the blocks that the next step may need; returns those preempted for that."""
        preempted: list[Sequence] = []
        block_size = self._blocks.block_size
        for seq in running:
            if len(seq.token_ids) <= len(seq.block_table) * block_size:
                continue  # as most, in most steps
            while seq.status is SequenceStatus.RUNNING and not self._blocks.secure(seq):
                victim = self.callers.victim(self.callers)
                if victim is not None:
                    self._preempt(victim)
                    preempted.append(victim)
                else:
                    self._release_last_resort()
        return preempted

    def secure_spare_slots(self, seq: Sequence, num_slots: int) -> int:
        """Gives a running sequence room for tokens that it may come to have, where that costs nobody anything.

        Returns:
            for how many, at most `num_slots`.
        """
        num_tokens = seq.num_tokens + num_slots
        num_missing = self._blocks.num_blocks_for(num_tokens) - len(seq.block_table)
        if num_missing <= 0:
            return num_slots
        if num_missing + self._watermark <= self._blocks.num_free_blocks and self._blocks.allocate(seq, num_tokens):
            return num_slots
        return len(seq.block_table) * self._blocks.block_size - seq.num_tokens

    def _preempt(self, seq: Sequence) -> None:
        caller = self.callers.of(seq)
        caller.running.take(seq)
        caller.waiting.put(seq)
        self.num_running -= 1
        self._blocks.free(seq)
        seq.status = SequenceStatus.WAITING
        self.num_preemptions_total += 1

    def admit(self, seq: Sequence, on_preempt: Callable[[Sequence], None]) -> bool:
        """Lets the first waiting sequence of a caller run, if all of it fits.

        Args:
            seq: the first in its caller's queue, or the first that is not late.
            on_preempt: called with each sequence that loses its place for it.

        Returns:
            Whether it runs now.
        """
        while self.num_running >= self.callers.max_num_seqs or (prefix := self._fitting_prefix(seq)) is None:
            if not self._make_room(seq, on_preempt):
                return False
        if not (seq.block_table or seq.needs_prompt_logits):
            self._blocks.adopt_prefix(seq, prefix)
        self._blocks.secure(seq)
        if seq.first_scheduled_time_s is None:
            seq.first_scheduled_time_s = time.monotonic()
            seq.num_cached_tokens = seq.num_computed_tokens
        caller = self.callers.of(seq)
        caller.waiting.take(seq)
        caller.running.put(seq)
        caller.round = max(caller.round, seq.round)
        self._num_admitted += 1
        caller.last_turn = self._num_admitted
        self.num_running += 1
        seq.status = SequenceStatus.RUNNING
        seq.leader = None
        return True

    def _fitting_prefix(self, seq: Sequence) -> list[int] | None:
        """Returns the cached start of a sequence, empty where it may take none, or None if it does not fit."""
        prefix = [] if seq.block_table or seq.needs_prompt_logits else self._blocks.match_prefix(seq)
        return prefix if self._blocks.can_admit(seq, prefix, self._watermark if self.num_running else 0) else None

    def _make_room(self, seq: Sequence, on_preempt: Callable[[Sequence], None]) -> bool:
        """Takes a slot or blocks from callers who hold more than their due, for one who stays within its own."""
        if self.num_running == 0:
            self._release_last_resort()
            return True
        if len(self.callers) == 1 or not self.callers.is_due(seq):
            return False
        rich = self.callers.above_due()
        if self.num_running < self.callers.max_num_seqs and self._release_waiting_prefix(rich):
            return True
        victim = self.callers.victim(rich, seq)
        if victim is None:
            return False
        self._preempt(victim)
        on_preempt(victim)
        return True

    def _wait_as_group(self, seqs: list[Sequence]) -> None:
        """Queues choices of one request whose prompt nobody has computed; the first becomes the leader."""
        leader, *followers = seqs
        leader.leader = None
        self.callers.of(leader).waiting.put(leader)
        if followers:
            self._followers[leader.seq_id] = followers
            for seq in followers:
                seq.leader = leader

    @property
    def has_followers(self) -> bool:
        """Whether any sequence waits for another's prompt."""
        return bool(self._followers)

    def release_followers(self, leader: Sequence) -> None:
        """Lets followers of a computed prompt hold it while they wait themselves, so that it outlives its leader."""
        for seq in self._followers.pop(leader.seq_id, ()):
            self._blocks.fork_prefix(leader, seq)
            self.callers.of(seq).waiting.put(seq)

    def _release_waiting_prefix(self, callers: Iterable[Caller]) -> bool:
        """Takes the prompt blocks back from the least important group of these callers that waits with some, if any."""
        lasts = [
            seq for caller in callers if (seq := next((s for s in reversed(caller.waiting) if s.block_table), None))
        ]
        if not lasts:
            return False
        last = max(lasts, key=lambda seq: seq.order)
        waiting = self.callers.of(last).waiting
        group = [seq for seq in waiting if seq.block_table and seq.leader is last.leader]
        for seq in group:
            self._blocks.free(seq)
            waiting.take(seq)
        self._wait_as_group(group)
        return True

    def _release_last_resort(self) -> None:
        """Takes prompt blocks back for a sequence that is to run alone; it fits then, as the scheduler sees to it."""
        is_released = self._release_waiting_prefix(self.callers)
        assert is_released, "a sequence alone does not fit into the KV cache"
