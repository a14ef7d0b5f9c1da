"""Which sequences run in the next step, how many tokens of each, and what a step's tokens did to them.

It exists so that batching, preemption and endings are one plain algorithm, tested without a model. It must not know
tensors, text or the pipe: the engine turns a `ScheduledBatch` into tensors and updates into messages.

Planning (`schedule`) gives out blocks and admits. A step that has been launched advances its sequences (`advance`):
what it computes counts as computed, what it samples is a token not known yet. So the next one can be planned, and
launched, before the first one's tokens are here (`settle`).

Pure: the standard library and other pure files of `model`.
"""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Collection, Iterable
from collections.abc import Sequence as AlignedList
from operator import attrgetter

from model.block_manager import BlockManager
from model.errors import InvalidRequestError
from model.messages import EngineStats
from model.sequence import (
    UNKNOWN_TOKEN,
    ScheduledBatch,
    ScheduledSequence,
    Sequence,
    SequenceStatus,
    SequenceUpdate,
)

__all__ = ["ScheduledBatch", "ScheduledSequence", "Scheduler", "SequenceUpdate"]

_order = attrgetter("order")


class Scheduler:
    """Continuous batching with chunked prefill, by (priority, arrival).

    Every running sequence has blocks for all its tokens. When one cannot get its next block, the least important
    running sequence loses all of its own and waits again; its cache is recomputed later. So the most important one
    always goes on, and as every sequence is bounded, all end.

    Args:
        block_manager: of the KV cache.
        max_num_seqs: the most sequences that run.
        max_num_batched_tokens: the most tokens in a step. Below the number of running sequences they take turns.
        max_model_len: the most tokens in a sequence.
    """

    def __init__(
        self, block_manager: BlockManager, *, max_num_seqs: int, max_num_batched_tokens: int, max_model_len: int
    ) -> None:
        if min(max_num_seqs, max_num_batched_tokens, max_model_len) < 1:
            raise ValueError("limits of a scheduler are at least 1")
        self.block_manager = block_manager
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_model_len = max_model_len
        self.num_preemptions_total = 0
        self._num_slots = block_manager.num_blocks * block_manager.block_size
        # Left to those who run when another is admitted; into the last block, it would preempt somebody a step later.
        self._watermark = max(1, block_manager.num_blocks // 100)
        self._sequences: dict[int, Sequence] = {}  # all that have not ended, by id
        self._waiting: list[Sequence] = []  # both lists are kept in order of importance
        self._running: list[Sequence] = []
        self._followers: dict[int, list[Sequence]] = {}  # by id of the leader whose prompt they wait for
        self._num_arrived = 0
        self._num_in_flight = 0
        self._num_turns = 0
        self._num_steps = 0
        self._num_step_tokens = 0

    def add(self, seqs: list[Sequence]) -> None:
        """Takes the choices of one request: the first computes the prompt, the others wait for its blocks.

        Raises:
            InvalidRequestError: they can never run; none of them was taken.
        """
        first = seqs[0]
        if first.num_prompt_tokens == 0:
            raise InvalidRequestError("The prompt is empty; send at least one token.", param="prompt")
        limit = min(self._num_slots, self.max_model_len - min(1, first.sampling.max_tokens))
        if first.num_prompt_tokens > limit:
            raise InvalidRequestError(
                f"The prompt has {first.num_prompt_tokens} tokens, but at most {limit} fit; shorten it.",
                param="prompt",
                code="context_length_exceeded",
            )
        for seq in seqs:
            self._num_arrived += 1
            seq.arrival_index = self._num_arrived
            self._sequences[seq.seq_id] = seq
        for group in [[seq] for seq in seqs] if first.needs_prompt_logits else [seqs]:
            self._wait_as_group(group)

    def abort(self, seq_ids: Iterable[int]) -> list[Sequence]:
        """Forgets sequences in whatever phase they are and frees their blocks; unknown ids are ignored.

        Returns:
            Those that were alive.
        """
        aborted = [seq for i in dict.fromkeys(seq_ids) if (seq := self._sequences.get(i)) is not None]
        for seq in aborted:
            self._finish(seq)
        return aborted

    def schedule(self, late: Collection[int] = ()) -> ScheduledBatch:
        """Plans the next step; the batch is empty only when there is no work, or when all that run are late.

        Args:
            late: ids of sequences to leave out this time.

        Returns:
            Decodes, then the prefill chunk that was under way, then newly admitted sequences.
        """
        has_preempted = self._secure_blocks()
        chosen, budget = self._running, self.max_num_batched_tokens
        if late:
            chosen = [seq for seq in chosen if seq.seq_id not in late]
        if self._num_in_flight:
            chosen = [seq for seq in chosen if not self._is_about_to_end(seq)]
        if len(chosen) > budget:
            chosen = sorted(chosen, key=attrgetter("last_turn"))[:budget]
        budget -= len(chosen)  # one token each is safe from those before it
        decodes: list[ScheduledSequence] = []
        chunks: list[ScheduledSequence] = []
        for seq in chosen:
            num_more = min(budget, seq.num_uncomputed_tokens - 1)
            budget -= num_more
            (chunks if seq.is_prefilling else decodes).append(self._entry(seq, 1 + num_more))
        # What was just preempted must not come straight back: it would have been for nothing.
        while budget and self._waiting and not has_preempted and len(self._running) < self.max_num_seqs:
            first = next((seq for seq in self._waiting if seq.seq_id not in late), None)
            if first is None or not self._admit(first):
                break
            seq = first
            num_tokens = min(budget, seq.num_uncomputed_tokens)
            budget -= num_tokens
            (chunks if seq.is_prefilling else decodes).append(self._entry(seq, num_tokens))
        batch = ScheduledBatch(decodes, chunks)
        self._num_steps += bool(batch)
        self._num_step_tokens = batch.num_tokens
        return batch

    def update(
        self, batch: ScheduledBatch, sampled: AlignedList[int | None], completed: Collection[int] = ()
    ) -> list[SequenceUpdate]:
        """Commits a step that has run: `advance` and `settle` in one."""
        self.advance(batch)
        return self.settle(batch, sampled, completed)

    def advance(self, batch: ScheduledBatch) -> None:
        """Takes note that a step was launched. At most two may be in flight.

        Args:
            batch: from `schedule`, not aborted in between.
        """
        self._num_in_flight += 1
        for seq, start, num_tokens, needs_sampling in batch.entries:
            if seq.status is SequenceStatus.RUNNING:
                seq.num_computed_tokens = start + num_tokens
                if needs_sampling:
                    seq.token_ids.append(UNKNOWN_TOKEN)

    def settle(
        self, batch: ScheduledBatch, sampled: AlignedList[int | None], completed: Collection[int] = ()
    ) -> list[SequenceUpdate]:
        """Commits the results of the oldest step in flight.

        Args:
            batch: as given to `advance`.
            sampled: for each entry its next token, or None where `needs_sampling` is false.
            completed: ids of sequences that this token ends whatever it is, because their grammar is complete.

        Returns:
            The sequences that got a token or ended; those that had ended before are left out.
        """
        self._num_in_flight -= 1
        updates: list[SequenceUpdate] = []
        for (seq, start, num_tokens, needs_sampling), token_id in zip(batch.entries, sampled, strict=True):
            if seq.status is SequenceStatus.FINISHED:
                continue
            end = start + num_tokens
            if needs_sampling:
                if token_id is None:
                    raise ValueError(f"no token was sampled for {seq}")
                seq.token_ids[end] = token_id
            if seq.status is SequenceStatus.RUNNING:
                # By now a later step may have advanced it, but only over tokens that are known since.
                self.block_manager.commit(seq)
                if end >= seq.num_prompt_tokens and seq.seq_id in self._followers:
                    self._fork_followers(seq)
            if needs_sampling:
                assert token_id is not None
                update = self._judge(seq, token_id, end + 1, seq.seq_id in completed)
            elif end == seq.num_tokens:
                update = SequenceUpdate(seq, None, "length", None)
            else:
                continue
            if update.finish_reason is not None:
                del seq.token_ids[end + needs_sampling :]
                self._finish(seq)
            updates.append(update)
        return updates

    def has_work(self) -> bool:
        """Returns whether any sequence has not ended."""
        return bool(self._sequences)

    def stats(self) -> EngineStats:
        """Returns the state between two steps."""
        blocks = self.block_manager
        return EngineStats(
            num_running=len(self._running),
            num_waiting=len(self._sequences) - len(self._running),
            num_blocks=blocks.num_blocks,
            num_free_blocks=blocks.num_free_blocks,
            num_cached_blocks=blocks.num_cached_blocks,
            num_preemptions_total=self.num_preemptions_total,
            prefix_cache_queries_total=blocks.prefix_cache_queries_total,
            prefix_cache_hits_total=blocks.prefix_cache_hits_total,
            num_steps_total=self._num_steps,
            num_step_tokens=self._num_step_tokens,
        )

    def _entry(self, seq: Sequence, num_tokens: int) -> ScheduledSequence:
        self._num_turns += 1
        seq.last_turn = self._num_turns
        start = seq.num_computed_tokens
        needs_sampling = start + num_tokens == seq.num_tokens and seq.sampling.max_tokens > 0
        return ScheduledSequence(seq, start, num_tokens, needs_sampling)

    def _judge(self, seq: Sequence, token_id: int, num_tokens: int, is_complete: bool) -> SequenceUpdate:
        is_ending = token_id in seq.sampling.ending_token_ids
        if is_ending or is_complete:
            return SequenceUpdate(seq, token_id, "stop", token_id if is_ending else None)
        reason = "length" if self._is_at_limit(seq, num_tokens) else None
        return SequenceUpdate(seq, token_id, reason, None)

    def _is_at_limit(self, seq: Sequence, num_tokens: int) -> bool:
        """Whether a sequence ends with this many tokens, whatever they are."""
        # One that outgrew the whole pool could not go on even alone.
        is_full = num_tokens >= self.max_model_len or num_tokens > self._num_slots
        return is_full or num_tokens - seq.num_prompt_tokens >= seq.sampling.max_tokens

    def _is_about_to_end(self, seq: Sequence) -> bool:
        """Whether the step in flight is the last of this running sequence: no slot need be wasted on another."""
        if seq.num_uncomputed_tokens == 0:
            return True  # a prompt that is only scored
        return seq.has_unknown_token and self._is_at_limit(seq, seq.num_tokens)

    def _secure_blocks(self) -> bool:
        """Gives every running sequence blocks for all its tokens; returns whether that preempted any."""
        num_before = self.num_preemptions_total
        for seq in self._running.copy():
            if self._num_in_flight and self._is_about_to_end(seq):
                continue
            while seq.status is SequenceStatus.RUNNING and not self.block_manager.allocate(seq, seq.num_tokens):
                if len(self._running) > 1:
                    self._preempt(self._running[-1])
                else:
                    self._release_waiting_prefix()
        return self.num_preemptions_total > num_before

    def _preempt(self, seq: Sequence) -> None:
        self._running.remove(seq)
        self.block_manager.free(seq)
        seq.status = SequenceStatus.WAITING
        insort(self._waiting, seq, key=_order)
        self.num_preemptions_total += 1

    def _admit(self, seq: Sequence) -> bool:
        """Moves the first waiting sequence to the running ones, if all of it fits."""
        blocks = self.block_manager
        while True:
            is_fresh = not (seq.block_table or seq.needs_prompt_logits)
            prefix = blocks.match_prefix(seq) if is_fresh else []
            if blocks.can_admit(seq, prefix, self._watermark if self._running else 0):
                break
            if self._running:
                return False
            self._release_waiting_prefix()
        if is_fresh:
            blocks.adopt_prefix(seq, prefix)
        blocks.allocate(seq, seq.num_tokens)
        if seq.first_scheduled_time_s is None:
            seq.first_scheduled_time_s = time.monotonic()
            seq.num_cached_tokens = seq.num_computed_tokens
        self._waiting.remove(seq)
        insort(self._running, seq, key=_order)
        seq.status = SequenceStatus.RUNNING
        seq.leader = None
        return True

    def _wait_as_group(self, seqs: list[Sequence]) -> None:
        """Queues choices of one request whose prompt nobody has computed; the first becomes the leader."""
        leader, *followers = seqs
        leader.leader = None
        insort(self._waiting, leader, key=_order)
        if followers:
            self._followers[leader.seq_id] = followers
            for seq in followers:
                seq.leader = leader

    def _fork_followers(self, leader: Sequence) -> None:
        """Lets followers hold the computed prompt while they wait, so that it outlives its leader."""
        for seq in self._followers.pop(leader.seq_id):
            self.block_manager.fork_prefix(leader, seq)
            insort(self._waiting, seq, key=_order)

    def _release_waiting_prefix(self) -> None:
        """Takes the prompt blocks back from the least important group that waits with some; the last resort.

        What runs then has the pool to itself, and any sequence fits into that: `add` and `_judge` see to it.
        """
        last = next((seq for seq in reversed(self._waiting) if seq.block_table), None)
        assert last is not None, "a sequence alone does not fit into the KV cache"
        group = [seq for seq in self._waiting if seq.block_table and seq.leader is last.leader]
        for seq in group:
            self.block_manager.free(seq)
            self._waiting.remove(seq)
        self._wait_as_group(group)

    def _finish(self, seq: Sequence) -> None:
        del self._sequences[seq.seq_id]
        following = self._followers.get(seq.leader.seq_id, []) if seq.leader is not None else []
        for queue in (self._running, self._waiting, following):
            if seq in queue:
                queue.remove(seq)
        self.block_manager.free(seq)
        seq.status = SequenceStatus.FINISHED
        seq.leader = None
        if orphans := self._followers.pop(seq.seq_id, None):
            self._wait_as_group(orphans)

    def check_integrity(self) -> None:
        """Raises RuntimeError unless queues, states and blocks agree with each other."""
        self.block_manager.check_integrity(self._sequences.values())
        following = [seq for followers in self._followers.values() for seq in followers]
        idle = self._waiting + following
        rules = {
            "each sequence is in one queue": sorted(s.seq_id for s in idle + self._running) == sorted(self._sequences),
            "queues are in order": all(q == sorted(q, key=_order) for q in (self._waiting, self._running)),
            "running states": all(seq.status is SequenceStatus.RUNNING for seq in self._running),
            "waiting states": all(seq.status is SequenceStatus.WAITING for seq in idle),
            "leaders live": all(s.leader is not None and s.leader.seq_id in self._sequences for s in following),
            "followers hold no blocks": not any(seq.block_table for seq in following),
            "no more run than may": len(self._running) <= self.max_num_seqs,
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            raise RuntimeError(f"the scheduler is inconsistent, broken: {', '.join(broken)}")
