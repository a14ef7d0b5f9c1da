"""Constrained decoding: which tokens a grammar allows next, for the sequences that have one.

The automata are llguidance's; ours is the bookkeeping. What may follow a token takes some tens of microseconds to find
out, but a grammar can be written that takes ever longer. So this is done on threads, and a step waits only so long for
it: a sequence whose grammar is late is left out of the next step, and the others go on. Those who have used least come
first; who has used up an account ends with an error. (llguidance's own parallel masks wait for the slowest of all.)
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import threading
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Sequence as AlignedList
from concurrent.futures import ThreadPoolExecutor, wait

import torch

from model.contract.grammar_compiler import GrammarAccount
from model.sampling.compiled_grammars import CompiledGrammar, num_mask_words
from model.sampling.grammar_walk import TOO_COMPLEX, GrammarWalk
from model.sampling.look_ahead import LookAhead

logger = logging.getLogger(__name__)

# A step waits so long for those who have not fallen behind, and not at all for the others.
PATIENCE_S = 0.05
LAST_PATIENCE_S = 0.3

# Taking a token holds the interpreter, as the loop's own work does: many threads would leave it little.
_MAX_WALK_THREADS = 4


class GrammarStates:
    """Where each constrained sequence is in its grammar.

    Args:
        vocab_size: columns of the logits.
        speculates: whether guesses are tried.
    """

    def __init__(self, vocab_size: int, *, speculates: bool = False) -> None:
        self._speculates = speculates
        num_words = num_mask_words(vocab_size)
        self._anything = torch.full((num_words,), -1, dtype=torch.int32)
        self._nothing = torch.zeros(num_words, dtype=torch.int32)
        self._walks: dict[int, GrammarWalk] = {}
        num_threads = max(1, min(_MAX_WALK_THREADS, (os.cpu_count() or 1) // 2))
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix="grammar walk")
        self._lock = threading.Lock()
        # What is to be found out, by what is left to those who ask.
        self._due: list[tuple[float, int, int, GrammarWalk]] = []
        self._numbers = itertools.count()
        self._ended: dict[int, str | None] = {}

    def start(self, seq_id: int, compiled: CompiledGrammar, account: GrammarAccount) -> None:
        """Lets a sequence begin."""
        self._walks[seq_id] = GrammarWalk(compiled, account, can_guess=self._speculates)

    def forget(self, seq_id: int) -> None:
        """Drops the state of a sequence that ended."""
        walk = self._walks.pop(seq_id, None)
        if walk is not None:
            walk.is_over = True
            with self._lock:
                self._ended.pop(seq_id, None)

    @property
    def late(self) -> set[int]:
        """Sequences of which it is not known yet what may follow: no step may sample them."""
        return {seq_id for seq_id, walk in self._walks.items() if walk.mask is None}

    @property
    def forced(self) -> dict[int, list[int]]:
        """By sequence, tokens that must follow, where there are some."""
        return {seq_id: walk.forced for seq_id, walk in self._walks.items() if walk.forced}

    def look_ahead(self, drafts: Mapping[int, AlignedList[int]]) -> None:
        """Begins to find out what is allowed behind guesses; `masks` and `num_followed` tell.

        Args:
            drafts: guessed tokens by sequence; those without a grammar are ignored.
        """
        for seq_id, draft_ids in drafts.items():
            walk = self._walks.get(seq_id)
            if walk is not None and walk.can_guess and draft_ids:
                walk.ahead = LookAhead.start(walk.matcher, draft_ids, len(self._anything), self._executor)

    def num_followed(self, seq_id: int, num_draft_tokens: int) -> int:
        """Returns how many of a sequence's guesses can be checked: behind each of them it is known what is allowed."""
        walk = self._walks.get(seq_id)
        if walk is None:
            return num_draft_tokens
        return 0 if walk.ahead is None else len(walk.ahead.masks())

    def masks(self, places: AlignedList[tuple[int, int]]) -> torch.Tensor | None:
        """Allowed next tokens.

        Args:
            places: for each row of a step its sequence, and how many guesses behind its last token the row is.

        Returns:
            [S, ceil(vocab_size / 32)] int32 bit masks on the CPU, all ones for sequences without a grammar;
            None when no row has one.
        """
        if not self._walks or not any(seq_id in self._walks for seq_id, _ in places):
            return None
        return torch.stack([self._mask(seq_id, num_guesses) for seq_id, num_guesses in places])

    def _mask(self, seq_id: int, num_guesses: int) -> torch.Tensor:
        walk = self._walks.get(seq_id)
        if walk is None:
            return self._anything
        mask = walk.mask_behind(num_guesses)
        if mask is None:  # what comes behind guesses that cannot be checked is not taken
            return self._anything if num_guesses else self._nothing
        return mask

    @property
    def follows_any(self) -> bool:
        """Whether any sequence has a grammar."""
        return bool(self._walks)

    def advance(self, tokens: Iterable[tuple[int, list[int]]], last: Collection[int] = ()) -> dict[int, str | None]:
        """Takes sampled tokens, and waits a moment for what may follow them.

        Args:
            tokens: pairs of a sequence's id and its tokens of this step.
            last: sequences that end with them: whether the grammar is complete is worth a longer wait.

        Returns:
            The sequences that this ends, of those that could be told by now: with None those whose grammar is
            complete, with a message those that cannot go on. `take_ended` tells of the others.
        """
        walks = [(seq_id, ids, walk) for seq_id, ids in tokens if (walk := self._walks.get(seq_id)) is not None]
        if not walks:
            return {}
        awaited = []
        for seq_id, token_ids, walk in walks:
            walk.take(token_ids)
            if not walk.account.is_behind:
                awaited.append(walk.is_known)
            with self._lock:
                heapq.heappush(self._due, (-walk.account.left_s, next(self._numbers), seq_id, walk))
            self._executor.submit(self._find_out_next)
        wait(awaited, PATIENCE_S)
        wait([w.is_known for seq_id, _, w in walks if seq_id in last and not w.account.is_behind], LAST_PATIENCE_S)
        with self._lock:
            return {seq_id: self._ended.pop(seq_id) for seq_id, _, _ in walks if seq_id in self._ended}

    def has_news(self) -> bool:
        """Whether `take_ended` would return something, or a sequence is no longer late."""
        return bool(self._ended) or any(walk.mask is not None and walk.is_known.done() for walk in self._walks.values())

    def take_ended(self) -> dict[int, str | None]:
        """Returns those that ended since they were last asked about, as `advance` does."""
        with self._lock:
            ended, self._ended = self._ended, {}
        return ended

    def _find_out_next(self) -> None:
        """The work of a thread: one token of whoever has used least."""
        with self._lock:
            _, _, seq_id, walk = heapq.heappop(self._due)
        if walk.is_over:
            return
        try:
            message = walk.go_on()
        except BaseException as error:  # a panic in the library is no Exception; it concerns one sequence
            logger.error("a grammar failed: %s", error)
            message = TOO_COMPLEX
        if message is not None or walk.is_over:
            with self._lock:
                if self._walks.get(seq_id) is walk:
                    self._ended[seq_id] = message
        walk.is_known.set_result(None)
