"""Which sequences run in the next step, how many tokens of each, and what a step's tokens did to them.

It exists so that batching, preemption and endings are one plain algorithm, tested without a model. It must not know
tensors, text or the pipe: the engine turns a `ScheduledBatch` into tensors and updates into messages.

Planning (`schedule`) gives out blocks and admits. A step that has been launched moves its sequences on
(`update_after_schedule`): what it computes counts as computed, what it samples is a token not known yet. So the next
one can be planned, and launched, before the first one's tokens are here (`update_from_output`).

Pure: the standard library and other pure files of `model`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from collections.abc import Sequence as AlignedList

from model.contract.errors import InvalidRequestError
from model.contract.messages import EngineStats
from model.scheduling.block_manager import BlockManager
from model.scheduling.callers import take_turns
from model.scheduling.prefill_budget import PrefillBudget
from model.scheduling.residents import Residents
from model.scheduling.sequence import (
    UNKNOWN_TOKEN,
    ScheduledBatch,
    ScheduledSequence,
    Sequence,
    SequenceStatus,
    SequenceUpdate,
)
from model.scheduling.speculation import Speculator
from model.scheduling.step_plan import StepPlan

# The background gets one in so many tokens of a step that others take part in: they hardly notice, as a step of a few
# rows more takes as long.
_BACKGROUND_PART = 64


class Scheduler:
    """Continuous batching with chunked prefill, shared by callers, and within a caller by (priority, round, arrival).

    Args:
        max_num_seqs: the most sequences that run.
        max_num_batched_tokens: the most tokens in a step. Below the number of running sequences they take turns.
        max_model_len: the most tokens in a sequence.
        max_running_per_caller: the most sequences of one caller that run; None is no limit.
        allow_priority: let priorities count between callers too.
        max_step_s: how long a step with prompts and decodes of others should take; 0 is any time.
        speculator: guesses tokens ahead; None for no guesses.
        num_parts: steps of disjoint sequences that are to be in flight under load; each takes its part of them.

    Attributes:
        prefill_budget: learns how many prompt tokens fit into `max_step_s`.
    """

    def __init__(
        self,
        block_manager: BlockManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        max_running_per_caller: int | None = None,
        allow_priority: bool = False,
        max_step_s: float = 0.0,
        speculator: Speculator | None = None,
        num_parts: int = 1,
    ) -> None:
        self.block_manager = block_manager
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_model_len = max_model_len
        self.max_running_per_caller = max_running_per_caller
        self.prefill_budget = PrefillBudget(max_step_s)
        self._speculator = speculator
        self._num_parts = num_parts
        self._num_slots = block_manager.max_sequence_tokens or max_model_len
        self.residents = Residents(block_manager, max_num_seqs, allow_priority)
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
        for group in [[seq] for seq in seqs] if first.needs_prompt_logits else [seqs]:
            self.residents.enter(group)

    def abort(self, seq_ids: Iterable[int]) -> list[Sequence]:
        """Forgets sequences in whatever phase they are and frees their blocks; unknown ids are ignored.

        Returns:
            Those that were alive.
        """
        sequences = self.residents.sequences
        aborted = [seq for i in dict.fromkeys(seq_ids) if (seq := sequences.get(i)) is not None]
        for seq in aborted:
            self.residents.leave(seq)
        return aborted

    def schedule(self, late: Collection[int] = (), forced: Mapping[int, list[int]] = {}) -> ScheduledBatch:
        """Plans the next step; the batch is empty only when there is no work, or when all that run are late.

        Args:
            late: ids of sequences to leave out this time.
            forced: tokens that a sequence's grammar asks for next, by id.

        Returns:
            Decodes, then the prefill chunk that was under way, then newly admitted sequences.
        """
        preempted = self.residents.secure_blocks(self._unfinished_running())
        chosen = self._unfinished_running()
        is_alone = all(caller.is_background for caller in self.residents.callers)
        # Nobody waits for the next token of what runs in the background.
        keeps_waiting = any(not seq.is_prefilling and (is_alone or not seq.is_background) for seq in chosen)
        max_num_chosen = min(self.max_num_batched_tokens, -(-len(chosen) // self._num_parts))
        if late:
            chosen = [seq for seq in chosen if seq.seq_id not in late]
        max_num_background = self.max_num_batched_tokens if is_alone else self._max_num_background(chosen)
        if sum([seq.is_background for seq in chosen]) > max_num_background:
            background = [seq for seq in chosen if seq.is_background]
            chosen = [seq for seq in chosen if not seq.is_background] + take_turns(background, max_num_background)
        if len(chosen) > max_num_chosen:
            chosen = take_turns(chosen, max_num_chosen)
        num_waiting = len(self.residents.sequences) - self.residents.num_running
        plan = StepPlan(
            self.residents,
            chosen,
            preempted,
            late=late,
            max_num_background=max_num_background,
            num_admissible=-(-num_waiting // self._num_parts),
            max_running_per_caller=self.max_running_per_caller,
        )
        if plan.wants_more and (num_left := self._num_left(chosen, keeps_waiting)):
            plan.share(num_left)
        decodes: list[ScheduledSequence] = []
        chunks: list[ScheduledSequence] = []
        for seq, num_tokens in plan.tokens.items():
            (chunks if seq.is_prefilling else decodes).append(self._entry(seq, num_tokens))
        if decodes and not chunks:
            decodes = self._with_drafts(decodes, plan, forced)
        batch = ScheduledBatch(decodes, chunks)
        self._num_steps += bool(batch)
        self._num_step_tokens = batch.num_tokens
        return batch

    def update_after_schedule(self, batch: ScheduledBatch) -> None:
        """Takes note that a step was launched, while others may still be in flight.

        Args:
            batch: a batch that `schedule` returned; nothing of it was aborted since.
        """
        self._num_in_flight += 1
        sequences, running = self.residents.sequences, SequenceStatus.RUNNING
        for entry in batch.entries:
            seq = sequences.get(entry.seq_id)
            if seq is not None and seq.status is running:
                seq.num_computed_tokens = entry.start + entry.num_tokens
                if entry.needs_sampling:
                    seq.token_ids.append(UNKNOWN_TOKEN)

    def update_from_output(
        self, batch: ScheduledBatch, sampled: AlignedList[list[int]], completed: Collection[int] = ()
    ) -> list[SequenceUpdate]:
        """Commits the results of the oldest step in flight.

        Args:
            batch: the batch that `update_after_schedule` was called with.
            sampled: next tokens of each entry: none where `needs_sampling` is false, and several where drafts are
                right, all of them but the last.
            completed: ids of sequences that the last token ends whatever it is, because their grammar is complete.

        Returns:
            The sequences that got a token or ended; those that had ended before are left out.
        """
        self._num_in_flight -= 1
        updates: list[SequenceUpdate] = []
        sequences, block_size = self.residents.sequences, self.block_manager.block_size
        has_followers = self.residents.has_followers
        for entry, token_ids in zip(batch.entries, sampled, strict=True):
            seq = sequences.get(entry.seq_id)
            if seq is None:
                continue
            end = entry.start + entry.num_tokens
            if entry.needs_sampling:
                if not token_ids:
                    raise ValueError(f"no token was sampled for {seq}")
                seq.token_ids[end : end + 1] = token_ids
            if seq.status is SequenceStatus.RUNNING:
                if entry.draft_ids:
                    self._keep_accepted(seq, entry, len(token_ids) - 1)
                # By now a later step may have advanced it, but only over tokens that are known since.
                if len(seq.cache_chain) < seq.num_computed_tokens // block_size:
                    self.block_manager.commit(seq)
                if has_followers and end >= seq.num_prompt_tokens:
                    self.residents.release_followers(seq)
                self.block_manager.release_passed(seq, end + max(0, len(token_ids) - 1))
            if entry.needs_sampling:
                update = self._check_stop(seq, token_ids, end + len(token_ids), seq.seq_id in completed)
            elif end == seq.num_tokens:
                update = SequenceUpdate(seq, [], "length", None)
            else:
                continue
            if update.finish_reason is not None:
                del seq.token_ids[end + len(token_ids) :]
                self.residents.leave(seq)
            updates.append(update)
        return updates

    def is_alive(self, seq_id: int) -> bool:
        """Returns whether a sequence has not ended; ids are never reused."""
        return seq_id in self.residents.sequences

    def has_work(self) -> bool:
        """Returns whether any sequence has not ended."""
        return bool(self.residents.sequences)

    def stats(self) -> EngineStats:
        """Returns the state between two steps."""
        blocks, guesses = self.block_manager, self._speculator
        return EngineStats(
            num_running=self.residents.num_running,
            num_waiting=len(self.residents.sequences) - self.residents.num_running,
            num_blocks=blocks.num_blocks,
            num_free_blocks=blocks.num_free_blocks,
            num_cached_blocks=blocks.num_cached_blocks,
            num_preemptions_total=self.residents.num_preemptions_total,
            prefix_cache_queries_total=blocks.prefix_cache_queries_total,
            prefix_cache_hits_total=blocks.prefix_cache_hits_total,
            num_steps_total=self._num_steps,
            num_step_tokens=self._num_step_tokens,
            num_drafts_total=0 if guesses is None else guesses.num_drafts_total,
            num_draft_tokens_total=0 if guesses is None else guesses.num_draft_tokens_total,
            num_accepted_tokens_total=0 if guesses is None else guesses.num_accepted_tokens_total,
        )

    def _unfinished_running(self) -> list[Sequence]:
        """Returns the running sequences that the step in flight, if any, does not end."""
        running = [seq for caller in self.residents.callers for seq in caller.running]
        return [seq for seq in running if not self._is_about_to_end(seq)] if self._num_in_flight else running

    def _max_num_background(self, running: list[Sequence]) -> int:
        """Tokens of a step that the background may have while others are there: few, so that they hardly notice."""
        num_others = len(running) - sum([seq.is_background for seq in running])
        return min(self.max_num_batched_tokens, max(1, num_others, self.max_num_batched_tokens // _BACKGROUND_PART))

    def _num_left(self, chosen: list[Sequence], keeps_waiting: bool) -> int:
        """Tokens of a step that are left once each of these has one, fewer where a long step keeps decodes waiting."""
        num_left = self.max_num_batched_tokens - len(chosen)
        if not keeps_waiting:
            return num_left
        num_decodes = len(chosen) - sum([seq.is_prefilling for seq in chosen])
        max_prompt_tokens = self.prefill_budget.max_tokens(num_decodes)
        if max_prompt_tokens is None:
            return num_left
        return max(0, min(num_left, max_prompt_tokens - (len(chosen) - num_decodes)))

    def _entry(self, seq: Sequence, num_tokens: int) -> ScheduledSequence:
        self._num_turns += 1
        seq.last_turn = self._num_turns
        start, sampling, token_ids = seq.num_computed_tokens, seq.sampling, seq.token_ids
        return ScheduledSequence(  # in order: by name it takes twice as long, and there may be hundreds
            seq.seq_id,
            seq.request_id,
            start,
            num_tokens,
            start + num_tokens == len(token_ids) and sampling.max_tokens > 0,
            sampling.num_prompt_logprobs is not None and seq.needs_prompt_logits,
            token_ids,
            seq.num_prompt_tokens,
            seq.block_table,
            seq.rope_alpha,
            sampling,
            seq.choice_index,
            seq.adapter_id,
        )

    def _with_drafts(
        self, decodes: list[ScheduledSequence], plan: StepPlan, forced: Mapping[int, list[int]]
    ) -> list[ScheduledSequence]:
        """Adds guesses to a step of nothing but decodes, as far as they are likely to pay and memory is free."""
        if self._speculator is None or len(decodes) >= self._speculator.max_num_rows:
            return decodes
        is_shared = any(not seq.is_background for seq in plan.tokens)
        rooms = {seq: 0 if is_shared and seq.is_background else self._draft_room(seq) for seq in plan.tokens}
        # Guesses are no prompts: what they add to a step's time is weighed against what they gain.
        drafts = self._speculator.draft(rooms, self.max_num_batched_tokens, forced)
        for i, entry in enumerate(decodes):
            draft_ids = drafts.get(entry.seq_id)
            if draft_ids:
                seq = self.residents.sequences[entry.seq_id]
                num_slots = self.residents.secure_spare_slots(seq, len(draft_ids))
                decodes[i] = entry._replace(draft_ids=draft_ids[:num_slots])
        return decodes

    def _draft_room(self, seq: Sequence) -> int:
        """How many tokens a sequence can get before the one that ends it, whatever they are."""
        limit = min(self.max_model_len, self._num_slots + 1, seq.num_prompt_tokens + seq.sampling.max_tokens)
        return limit - seq.num_tokens - 1

    def _keep_accepted(self, seq: Sequence, entry: ScheduledSequence, num_accepted: int) -> None:
        """Counts right guesses as computed, and gives back the blocks that wrong ones were written to."""
        seq.num_computed_tokens += num_accepted
        self.block_manager.trim(seq)
        if self._speculator is not None:
            self._speculator.note(len(entry.draft_ids), num_accepted)

    def _check_stop(self, seq: Sequence, token_ids: list[int], num_tokens: int, is_complete: bool) -> SequenceUpdate:
        last, sampling = token_ids[-1], seq.sampling
        is_ending = last in sampling.stop_token_ids or (last in sampling.eos_token_ids and not sampling.ignore_eos)
        if is_ending or is_complete:
            return SequenceUpdate(seq, token_ids, "stop", last if is_ending else None)
        reason = "length" if self._is_at_limit(seq, num_tokens) else None
        return SequenceUpdate(seq, token_ids, reason, None)

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
