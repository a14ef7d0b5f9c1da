"""The records the loop passes around: a sequence, what a step is to do to it, and what the step did.

The scheduler and the block manager share one record of a sequence. Who runs a step sees a batch of plain data, so that
it can be told to another process. None of them knows tensors or text: token ids, counters and block numbers.

Pure: the standard library and `model.contract.sampling_params`.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field
from typing import NamedTuple

from model.contract.sampling_params import SamplingParams

# Stands for a token that the device has sampled, or will, and the host has not read: a later step is planned with it.
UNKNOWN_TOKEN = -1

# Stands in a block table for a block that no layer will read again.
NO_BLOCK = -1


class SequenceStatus(enum.Enum):
    """Where a sequence is in its life; a preempted one is WAITING again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False, repr=False)
class Sequence:
    """Token ids and bookkeeping of one choice of one request.

    Attributes:
        seq_id: never reused while the engine lives.
        request_id: the HTTP request's, for log lines.
        token_ids: prompt, then output; the last may be `UNKNOWN_TOKEN` while its step is in flight.
        num_prompt_tokens: how many of `token_ids` are the prompt.
        sampling: how to sample it and when to end it.
        caller: name of the caller whose request it is; callers share the engine.
        weight: the caller's part when there is not enough for all.
        priority: lower is served first among its caller's.
        round: sequences of one caller and priority take turns by it. At first how many of its request come before it;
            the scheduler counts on from the caller's own.
        is_background: it takes what the others leave. All of a caller's are, or none is.
        arrival_index: breaks ties; given by the scheduler, kept through preemption.
        choice_index: index among the request's choices; the random stream is (seed, choice_index).
        rope_alpha: NTK alpha of the whole prompt. Keys are cached after rotation, so it is set once and survives
            preemption: a recomputed cache must equal the lost one.
        cache_salt: sequences share cached blocks only when their salts are equal.
        adapter_id: number of its adapter, 0 for none. Cached blocks are shared within an adapter only.
        block_table: the KV cache blocks of positions 0, block_size, 2 * block_size, ...; `NO_BLOCK` for the first ones
            when no layer's window reaches back to them.
        num_passed_blocks: how many those are.
        cache_chain: prefix cache nodes of its leading full blocks; the block manager's own.
        num_computed_tokens: tokens whose keys and values are in the cache.
        num_cached_tokens: prompt tokens that its first admission took from the prefix cache or its leader.
        arrival_time_s: `time.monotonic()` when it was made.
        first_scheduled_time_s: the same when it first entered a batch, or None.
        last_turn: when the scheduler last chose it; who waited longest is next when tokens are too few for all.
        leader: the choice whose prompt blocks this one waits for or took; None for a leader and once admitted.
        matched_blocks: its cached start as of the last look, when so many blocks had been evicted (`matched_at`); the
            block manager's own.
    """

    seq_id: int
    request_id: str
    token_ids: list[int]
    sampling: SamplingParams
    _: KW_ONLY
    caller: str = ""
    weight: int = 1
    priority: int = 0
    round: int = 0
    choice_index: int = 0
    rope_alpha: float = 1.0
    cache_salt: str = ""
    is_background: bool = False
    adapter_id: int = 0
    arrival_time_s: float = field(default_factory=time.monotonic)
    num_prompt_tokens: int = field(init=False)
    arrival_index: int = field(init=False, default=0)
    status: SequenceStatus = field(init=False, default=SequenceStatus.WAITING)
    block_table: list[int] = field(init=False, default_factory=list)
    num_passed_blocks: int = field(init=False, default=0)
    cache_chain: list[int] = field(init=False, default_factory=list)
    num_computed_tokens: int = field(init=False, default=0)
    num_cached_tokens: int = field(init=False, default=0)
    first_scheduled_time_s: float | None = field(init=False, default=None)
    last_turn: int = field(init=False, default=0)
    leader: Sequence | None = field(init=False, default=None)
    matched_blocks: list[int] = field(init=False, default_factory=list)
    matched_at: int = field(init=False, default=-1)

    def __post_init__(self) -> None:
        self.token_ids = list(self.token_ids)
        self.num_prompt_tokens = len(self.token_ids)

    def __repr__(self) -> str:
        return (
            f"Sequence({self.seq_id}, {self.status.value}, computed {self.num_computed_tokens} of {self.num_tokens}, "
            f"prompt {self.num_prompt_tokens}, blocks {self.block_table})"
        )

    @property
    def num_tokens(self) -> int:
        """Prompt and output together."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def held_blocks(self) -> list[int]:
        """The blocks in its table; not to be changed."""
        return self.block_table[self.num_passed_blocks :] if self.num_passed_blocks else self.block_table

    @property
    def has_unknown_token(self) -> bool:
        """Whether a step that is to sample its next token is in flight."""
        return self.token_ids[-1] == UNKNOWN_TOKEN

    @property
    def num_uncomputed_tokens(self) -> int:
        """Known tokens whose keys and values are not in the cache; 1 for a sequence that decodes."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def is_prefilling(self) -> bool:
        """Whether prompt positions, or several positions lost in a preemption, are still to be computed.

        Its negation, a decode, is: everything is computed but the newest token, which was generated.
        """
        return self.num_computed_tokens < max(self.num_prompt_tokens, len(self.token_ids) - 1)

    @property
    def needs_prompt_logits(self) -> bool:
        """Whether each prompt position must go through the model, so that none may come from a cache.

        Once a token was generated the prompt's log-probabilities are known, and a preempted sequence may take
        what the cache still has.
        """
        return self.sampling.num_prompt_logprobs is not None and len(self.token_ids) == self.num_prompt_tokens

    @property
    def cache_root(self) -> tuple[float, str, int]:
        """What else than their tokens must be equal for sequences to share cached blocks."""
        return self.rope_alpha, self.cache_salt, self.adapter_id

    @property
    def order(self) -> tuple[int, int, int]:
        """Sorts the sequences of one caller from the most important to the least."""
        return self.priority, self.round, self.arrival_index


class ScheduledSequence(NamedTuple):
    """A chunk of one sequence: all that a step needs to know of it.

    The two lists are the sequence's own, good until the next step is planned: whoever keeps them longer copies them.

    Attributes:
        seq_id: as in `Sequence`, like all that is not listed here.
        start: position of the chunk's first token.
        num_tokens: length of the chunk.
        needs_sampling: the chunk reaches the last known token, so the next one is to be sampled.
        needs_prompt_logits: the chunk's tokens are to be scored.
        token_ids: prompt and output so far; the last may be `UNKNOWN_TOKEN`.
        block_table: blocks for all of `token_ids` and `draft_ids`.
        draft_ids: guesses of the tokens that follow, to be checked; only of decodes whose last token is known.
    """

    seq_id: int
    request_id: str
    start: int
    num_tokens: int
    needs_sampling: bool
    needs_prompt_logits: bool
    token_ids: list[int]
    num_prompt_tokens: int
    block_table: list[int]
    rope_alpha: float
    sampling: SamplingParams
    choice_index: int
    adapter_id: int = 0
    draft_ids: list[int] = []  # noqa: RUF012 - nobody writes to it

    @property
    def end(self) -> int:
        """Position behind the chunk's last token; drafts come after it."""
        return self.start + self.num_tokens

    @property
    def num_rows(self) -> int:
        """What it takes of a step: its tokens and drafts."""
        return self.num_tokens + len(self.draft_ids)


class ScheduledBatch:
    """The chunks of one step, false when there is nothing to do.

    Attributes:
        entries: decodes (one token each, and drafts), then prefill chunks.
        num_decodes: how many of `entries` are decodes.
        num_tokens: tokens of all chunks and drafts together.
    """

    __slots__ = ("entries", "num_decodes", "num_tokens")

    def __init__(self, decodes: list[ScheduledSequence], chunks: list[ScheduledSequence]) -> None:
        self.entries = decodes + chunks
        self.num_decodes = len(decodes)
        self.num_tokens = sum([entry.num_tokens + len(entry.draft_ids) for entry in self.entries])

    def copy(self) -> ScheduledBatch:
        """The same step with lists of its own, for whoever keeps it while others are planned."""
        entries = [
            entry._replace(token_ids=entry.token_ids.copy(), block_table=entry.block_table.copy())
            for entry in self.entries
        ]
        return ScheduledBatch(entries[: self.num_decodes], entries[self.num_decodes :])

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[ScheduledSequence]:
        return iter(self.entries)


class SequenceUpdate(NamedTuple):
    """What a step did to a sequence that got tokens or ended.

    Attributes:
        seq: the sequence.
        token_ids: the new ones: several where drafts were right, none when its prompt was only scored.
        finish_reason: None while it goes on, else "stop" or "length".
        stop_token_id: the last of `token_ids` when that ended it.
    """

    seq: Sequence
    token_ids: list[int]
    finish_reason: str | None
    stop_token_id: int | None
