"""Whose sequences they are, and how a step, its slots and the KV cache are shared among those who sent them.

It exists so that fairness is arithmetic of its own, apart from batching. A caller alone may have everything; several
have what they want while there is enough, and else parts in proportion to their weights. It must not know how a
sequence is admitted or preempted: the scheduler does both, and asks here whose turn it is and who has too much.

Pure: the standard library and other pure files of `model`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter

from model.scheduling.block_manager import BlockManager
from model.scheduling.sequence import Sequence

_order = attrgetter("order")


class SequenceQueue(list[Sequence]):
    """Sequences from the most important to the least."""

    def put(self, seq: Sequence) -> None:
        """Takes a sequence in, at its place."""
        insort(self, seq, key=_order)

    def take(self, seq: Sequence) -> None:
        """Takes a sequence out, if it is in."""
        index = bisect_left(self, seq.order, key=_order)
        if index < len(self) and self[index] is seq:
            del self[index]


@dataclass(slots=True, eq=False)
class Caller:
    """What one caller has in the engine.

    Attributes:
        weight: its part when there is not enough for all.
        is_background: it takes what those who are not leave, and gives back what they want.
        waiting: sequences that could be admitted.
        running: sequences that have blocks for all their tokens.
        num_sequences: sequences that have not ended; those that wait for their leader are in neither queue.
        round: round of the sequence admitted last. Requests of one caller take turns by it.
        last_turn: when that was, in admissions of all callers.
    """

    name: str
    weight: int = 1
    is_background: bool = False
    waiting: SequenceQueue = field(default_factory=SequenceQueue)
    running: SequenceQueue = field(default_factory=SequenceQueue)
    num_sequences: int = 0
    round: int = 0
    last_turn: int = 0


def split(num_tokens: int, wanted: dict[Caller, int]) -> dict[Caller, int]:
    """Shares tokens so that nobody who gets less than it wants gets less than another, for its weight.

    Args:
        num_tokens: tokens to share.
        wanted: how many each caller could use.
    """
    parts: dict[Caller, int] = {}
    weights = sum(caller.weight for caller in wanted)
    for caller in sorted(wanted, key=lambda c: (wanted[c] / c.weight, c.last_turn)):
        parts[caller] = min(wanted[caller], -(-num_tokens * caller.weight // weights))
        num_tokens -= parts[caller]
        weights -= caller.weight
    return parts


def take_turns(seqs: Iterable[Sequence], num_turns: int) -> list[Sequence]:
    """Chooses running sequences for a step with fewer tokens: callers in turn, of each who has waited longest."""
    seqs = sorted(seqs, key=attrgetter("last_turn"))
    num_before = Counter[str]()
    places = {}
    for seq in seqs:
        places[seq] = num_before[seq.caller] / seq.weight
        num_before[seq.caller] += 1
    return sorted(seqs, key=places.__getitem__)[:num_turns]


class FairShare:
    """Whose turn it is, and who has too much: all callers with sequences that have not ended.

    A caller holds the larger of two parts: of the slots for running sequences, and of the blocks of the KV cache. Its
    due is its weight's part of both, and only up to that may it take from those who hold more than theirs. So what it
    took is never taken back for the same reason, and nothing is preempted to and fro. Who is in the background counts
    for nothing while somebody else is there: nothing is its due, and all it holds may be taken.

    Args:
        max_num_seqs: the most sequences that run.
        allow_priority: let `Sequence.priority` count between callers too, before shares do.
    """

    def __init__(self, block_manager: BlockManager, max_num_seqs: int, allow_priority: bool) -> None:
        self.max_num_seqs = max_num_seqs
        self._blocks = block_manager
        self._allow_priority = allow_priority
        self._callers: dict[str, Caller] = {}

    def __len__(self) -> int:
        return len(self._callers)

    def __iter__(self) -> Iterator[Caller]:
        return iter(self._callers.values())

    def enter(self, seq: Sequence) -> None:
        """Takes note of a new sequence, and of its place among those of its caller."""
        caller = self._callers.get(seq.caller)
        if caller is None:
            caller = self._callers[seq.caller] = Caller(seq.caller)
        caller.weight = seq.weight
        caller.is_background = seq.is_background
        caller.num_sequences += 1
        seq.round += caller.round + 1

    def leave(self, seq: Sequence) -> None:
        """Takes note of a sequence that has ended."""
        caller = self.of(seq)
        caller.waiting.take(seq)
        caller.running.take(seq)
        caller.num_sequences -= 1
        if caller.num_sequences == 0:
            del self._callers[seq.caller]

    def of(self, seq: Sequence) -> Caller:
        """Returns the caller of a sequence that has not ended."""
        return self._callers[seq.caller]

    def in_turn(self, callers: list[Caller]) -> list[Caller]:
        """Sorts callers by whose waiting sequence is next: who holds least, then who has waited longest."""
        waiting = [caller for caller in callers if caller.waiting]
        if len(waiting) < 2:
            return callers
        waiting.sort(key=lambda c: (self._urgency(c.waiting[0]), self._held(c), c.last_turn))
        return waiting + [caller for caller in callers if not caller.waiting]

    def can_admit(self, num_running: int) -> bool:
        """Whether a slot is free, or somebody who waits has fewer than its due: a look before all that costs more."""
        if num_running < self.max_num_seqs:
            return True
        return any(
            caller.waiting and len(caller.running) + 1 <= self._due(caller) * caller.weight * self.max_num_seqs
            for caller in self
        )

    def is_due(self, seq: Sequence) -> bool:
        """Whether a caller who has another sequence running holds no more than its due."""
        caller = self.of(seq)
        num_blocks = self._num_blocks(caller) + self._blocks.num_missing_blocks(seq)
        due = caller.weight * self._due(caller)
        return len(caller.running) + 1 <= due * self.max_num_seqs and num_blocks <= due * self._blocks.num_blocks

    def above_due(self) -> list[Caller]:
        """Returns the callers who hold more than their due."""
        return [caller for caller in self if self._held(caller) > self._due(caller)]

    def victim(self, callers: Iterable[Caller], wanting: Sequence | None = None) -> Sequence | None:
        """Returns whom of these callers to preempt: the least important sequence of the one who holds most.

        Spared is the one that came before the most important ones of all other callers: it goes on whatever comes
        after it, and so everybody's turn comes. Where it is of the background it makes way for one that is not.

        Args:
            callers: who hold something.
            wanting: the waiting sequence that wants room; None where a running one cannot go on.
        """
        firsts = [caller.running[0] for caller in self if caller.running]
        first = min(firsts, key=lambda seq: (self._urgency(seq), seq.arrival_index))
        makes_way = first.is_background and wanting is not None and not wanting.is_background
        spared = None if makes_way else first
        lasts = [caller.running[-1] for caller in callers if caller.running and caller.running[-1] is not spared]
        if len(lasts) < 2:
            return lasts[0] if lasts else None
        return max(lasts, key=lambda seq: (self._urgency(seq), self._held(self.of(seq)), seq.arrival_index))

    def _due(self, caller: Caller) -> float:
        """A caller's part of all there is, for its weight."""
        foreground = sum(other.weight for other in self if not other.is_background)
        if foreground:
            return 0.0 if caller.is_background else 1 / foreground
        return 1 / sum(other.weight for other in self)

    def _urgency(self, seq: Sequence) -> tuple[bool, int]:
        return seq.is_background, seq.priority if self._allow_priority else 0

    def _num_blocks(self, caller: Caller) -> int:
        """Blocks its sequences hold, each counted once; those that wait hold some where their leader computed them."""
        seqs = [seq for queue in (caller.running, caller.waiting) for seq in queue]
        return len(set[int]().union(*[seq.held_blocks for seq in seqs if seq.block_table]))

    def _held(self, caller: Caller) -> float:
        """The part a caller has of what is scarce, for its weight."""
        blocks = self._num_blocks(caller) / self._blocks.num_blocks
        return max(len(caller.running) / self.max_num_seqs, blocks) / caller.weight
