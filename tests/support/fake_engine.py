"""A scheduler driven without a model: what a sequence says next depends on its tokens alone."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable

from model.contract.sampling_params import SamplingParams
from model.scheduling.block_manager import BlockManager
from model.scheduling.scheduler import Scheduler
from model.scheduling.sequence import ScheduledBatch, ScheduledSequence, Sequence, SequenceStatus, SequenceUpdate
from model.scheduling.speculation import RowCosts, Speculator
from tests.support.scheduling_integrity import check_scheduler

EOS = 0
VOCAB_SIZE = 5
Content = tuple[int, int, float, str, int]


def digests(token_ids: list[int]) -> list[int]:
    """A digest of each prefix, up to and with each position."""
    values, value = [], 0
    for token_id in token_ids:
        value = zlib.crc32(token_id.to_bytes(4, "little"), value)
        values.append(value)
    return values


def sample(token_ids: list[int], choice_index: int, alpha: float) -> int:
    """The fake model: its next token depends on all tokens, the choice and alpha, on nothing else."""
    return zlib.crc32(repr((token_ids, choice_index, alpha)).encode()) % VOCAB_SIZE


def alone(seq: Sequence, scheduler: Scheduler) -> tuple[list[int], str]:
    """What a sequence generates when nothing else runs: no scheduler, no cache."""
    blocks = scheduler.block_manager
    tokens, output = seq.token_ids[: seq.num_prompt_tokens], list[int]()
    if seq.sampling.max_tokens == 0:
        return output, "length"
    while True:
        output.append(sample(tokens, seq.choice_index, seq.rope_alpha))
        tokens.append(output[-1])
        if output[-1] in seq.sampling.ending_token_ids:
            return output, "stop"
        is_full = len(tokens) >= scheduler.max_model_len or len(tokens) > (blocks.max_sequence_tokens or len(tokens))
        if is_full or len(output) >= seq.sampling.max_tokens:
            return output, "length"


def update(
    scheduler: Scheduler, batch: ScheduledBatch, sampled: list[list[int]], completed: Collection[int] = ()
) -> list[SequenceUpdate]:
    """Commits a step that has run."""
    scheduler.update_after_schedule(batch)
    return scheduler.update_from_output(batch, sampled, completed)


def output_ids(seq: Sequence) -> list[int]:
    return seq.token_ids[seq.num_prompt_tokens :]


def accepted(entry: ScheduledSequence) -> list[int]:
    """The tokens that stand: the model's own, as long as the guesses before them are."""
    tokens = list[int]()
    for draft_id in [*entry.draft_ids, None]:
        tokens.append(sample([*entry.token_ids, *tokens], entry.choice_index, entry.rope_alpha))
        if tokens[-1] != draft_id:
            break
    return tokens


class FakeEngine:
    """Steps a scheduler, checks all that a step may not do, and remembers what came out."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        caching: bool = True,
        max_num_seqs: int = 8,
        max_num_batched_tokens: int = 64,
        max_model_len: int = 2000,
        max_running_per_caller: int | None = None,
        allow_priority: bool = False,
        speculates: bool = False,
        window: int | None = None,
    ) -> None:
        # Where rows cost nothing, whatever can be guessed is tried.
        costs = RowCosts((1, 24), (1.0, 1.0), 0.0)
        self.speculator = Speculator(costs, VOCAB_SIZE) if speculates else None
        self.window = window
        self.blocks = BlockManager(
            num_blocks, block_size, caching, largest_window=window, max_step_tokens=max_num_batched_tokens
        )
        self.scheduler = Scheduler(
            self.blocks,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=max_model_len,
            max_running_per_caller=max_running_per_caller,
            allow_priority=allow_priority,
            speculator=self.speculator,
        )
        self.memory: dict[int, Content] = {}
        self.live: dict[int, Sequence] = {}
        self.callers: dict[int, str] = {}
        self.finished: dict[int, tuple[list[int], str]] = {}
        self.unscored: dict[int, set[int]] = {}
        self.num_computed_tokens = 0
        self.num_made = 0

    def add(
        self,
        prompt: Iterable[int],
        *,
        caller: str = "",
        weight: int = 1,
        num_before: int = 0,
        n: int = 1,
        max_tokens: int = 8,
        priority: int = 0,
        alpha: float = 1.0,
        salt: str = "",
        num_prompt_logprobs: int | None = None,
        eos_token_ids: tuple[int, ...] = (),
        ignore_eos: bool = False,
    ) -> list[Sequence]:
        sampling = SamplingParams(
            max_tokens=max_tokens,
            num_prompt_logprobs=num_prompt_logprobs,
            eos_token_ids=eos_token_ids,
            ignore_eos=ignore_eos,
        )
        seqs = [
            Sequence(
                self.num_made + i,
                "request",
                prompt,
                sampling,
                caller=caller,
                weight=weight,
                round=num_before + i,
                priority=priority,
                choice_index=i,
                rope_alpha=alpha,
                cache_salt=salt,
                is_background=caller.startswith("batch"),
            )
            for i in range(n)
        ]
        self.scheduler.add(seqs)
        if self.speculator is not None:
            self.speculator.start(seqs, seqs[0].token_ids[:], self.prediction(seqs[0]))
        self.num_made += n
        for seq in seqs:
            self.live[seq.seq_id] = seq
            self.callers[seq.seq_id] = caller
            if num_prompt_logprobs is not None:
                self.unscored[seq.seq_id] = set(range(seq.num_prompt_tokens))
        return seqs

    def prediction(self, seq: Sequence) -> list[int]:
        """What it will say but for every fifth token, for one sequence in two."""
        if seq.seq_id % 2:
            return []
        return [token_id if i % 5 else 0 for i, token_id in enumerate(alone(seq, self.scheduler)[0], 1)]

    def abort(self, seq_ids: Iterable[int]) -> None:
        for seq in self.scheduler.abort(seq_ids):
            assert self.live.pop(seq.seq_id) is seq
            assert seq.status is SequenceStatus.FINISHED
            assert not seq.block_table

    def content(self, seq: Sequence, draft_ids: Iterable[int] = ()) -> list[Content]:
        token_ids = [*seq.token_ids, *draft_ids]
        return [
            (token_id, position, seq.rope_alpha, seq.cache_salt, digest)
            for position, (token_id, digest) in enumerate(zip(token_ids, digests(token_ids), strict=True))
        ]

    def slot(self, seq: Sequence, position: int) -> int:
        size = self.blocks.block_size
        return seq.block_table[position // size] * size + position % size

    def compute(self, batch: ScheduledBatch) -> None:
        """Reads all contexts, then writes all chunks, as a layer of a real model might in any order."""
        read: set[int] = set()
        written: dict[int, Content] = {}
        for entry in batch:
            seq = self.live[entry.seq_id]
            content = self.content(seq)
            first = 0 if self.window is None else max(0, entry.start + 1 - self.window)
            for position in range(first, entry.start):
                slot = self.slot(seq, position)
                assert self.memory[slot] == content[position], f"{seq} reads another's key at {position}"
                read.add(slot)
            content += self.content(seq, entry.draft_ids)[entry.end :]
            for position in range(entry.start, entry.end + len(entry.draft_ids)):
                slot = self.slot(seq, position)
                assert slot not in written, f"{seq} and another one write the same slot"
                written[slot] = content[position]
                self.unscored.get(seq.seq_id, set()).discard(position)
        assert not read & written.keys(), "a slot that others read is overwritten"
        self.memory.update(written)
        self.num_computed_tokens += batch.num_tokens

    def check_batch(self, batch: ScheduledBatch) -> None:
        scheduler = self.scheduler
        assert bool(batch) == bool(self.live), "an idle step while there is work"
        assert batch.num_tokens <= scheduler.max_num_batched_tokens
        assert len(batch) <= scheduler.residents.callers.max_num_seqs
        assert len({entry.seq_id for entry in batch}) == len(batch)
        limit = scheduler.max_running_per_caller
        assert limit is None or max(Counter(self.callers[entry.seq_id] for entry in batch).values(), default=0) <= limit
        for index, entry in enumerate(batch):
            seq = self.live[entry.seq_id]
            assert entry.start == seq.num_computed_tokens
            assert 1 <= entry.num_tokens <= seq.num_tokens - entry.start
            assert len(seq.block_table) * self.blocks.block_size >= entry.end + len(entry.draft_ids)
            assert not entry.draft_ids or len(batch) == batch.num_decodes
            assert entry.needs_sampling == (entry.end == seq.num_tokens and seq.sampling.max_tokens > 0)
            assert entry.needs_prompt_logits == seq.needs_prompt_logits
            assert seq.is_prefilling == (index >= batch.num_decodes)

    def step(self, abort: Iterable[int] = ()) -> tuple[ScheduledBatch, list[SequenceUpdate]]:
        """One step; `abort` are ids that go away while it runs."""
        running = {i: seq.num_computed_tokens for i, seq in self.live.items() if seq.status is SequenceStatus.RUNNING}
        batch = self.scheduler.schedule()
        check_scheduler(self.scheduler)
        self.check_batch(batch)
        for entry in batch:
            assert entry.start == running.get(entry.seq_id, entry.start), f"{entry.seq_id} was preempted for nothing"
        self.compute(batch)
        sampled = [accepted(entry) if entry.needs_sampling else [] for entry in batch]
        self.abort(abort)
        updates = update(self.scheduler, batch, sampled)
        check_scheduler(self.scheduler)
        for seq, token_ids, finish_reason, stop_token_id in updates:
            assert len(seq.block_table) <= self.blocks.num_blocks_for(seq.num_tokens)
            assert not self.unscored.pop(seq.seq_id, None), f"{seq} skipped prompt positions it must score"
            assert token_ids == seq.token_ids[seq.num_tokens - len(token_ids) :]
            assert (stop_token_id is not None) == (finish_reason == "stop")
            if finish_reason is not None:
                del self.live[seq.seq_id]
                self.finished[seq.seq_id] = (output_ids(seq), finish_reason)
                assert self.finished[seq.seq_id] == alone(seq, self.scheduler)
        return batch, updates

    def run(self, max_steps: int = 20_000) -> None:
        for _ in range(max_steps):
            if not self.scheduler.has_work():
                break
            self.step()
        assert not self.live, "sequences that never end"
        assert self.blocks.num_free_blocks == self.blocks.num_blocks

    def step_until(self, condition: Callable[[], bool]) -> None:
        for _ in range(1000):
            if condition():
                return
            self.step()
        raise AssertionError("it never happened")


def num_tokens(engine: FakeEngine, num_steps: int) -> Counter[str]:
    """Computed tokens of each caller in so many steps."""
    counts = Counter[str]()
    for _ in range(num_steps):
        batch, _ = engine.step()
        for entry in batch:
            counts[engine.callers[entry.seq_id]] += entry.num_tokens
    return counts


def num_running(engine: FakeEngine) -> Counter[str]:
    return Counter(seq.caller for seq in engine.live.values() if seq.status is SequenceStatus.RUNNING)
