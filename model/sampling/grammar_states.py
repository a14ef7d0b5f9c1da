"""Constrained decoding: which tokens a grammar allows next, for the sequences that have one.

The automata are llguidance's; ours is the bookkeeping: grammars are compiled on threads so that no step waits for
one, compiled ones are kept, and each sequence walks its own copy. It must not know where a grammar comes from; it is
one text, in llguidance's Lark dialect or its JSON form.

What may follow a token takes some tens of microseconds to find out, but a grammar can be written that takes ever
longer. So this is done on threads too, and a step waits only so long for it: a sequence whose grammar is late is left
out of the next step, and the others go on. Those who have used least come first; who has used up an account ends with
an error.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Sequence as AlignedList
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

import torch
from llguidance import LLMatcher, LLTokenizer

from model.contract.grammar_compiler import GrammarAccount, GrammarError, compile_grammar, make_ll_tokenizer
from model.contract.tokenizer import Tokenizer
from model.sampling.look_ahead import LookAhead, forced_tokens

logger = logging.getLogger(__name__)

# A step waits so long for those who have not fallen behind, and not at all for the others.
PATIENCE_S = 0.05
LAST_PATIENCE_S = 0.3

TOO_SLOW = "The grammar takes too long to follow: it can be read in too many ways. Make it unambiguous, or simpler."
STUCK = "The grammar is not complete, yet allows nothing after what this reply has so far; mend it where it ends there."
TOO_COMPLEX = "The grammar became too complex to follow with this reply; make it unambiguous, or simpler."

# Nothing is guessed where a step's tokens took longer to follow.
_MAX_GUESSABLE_S = 0.005

_MAX_CACHED_GRAMMARS = 128
_NUM_COMPILE_THREADS = 1
# Taking a token holds the interpreter, as the loop's own work does: many threads would leave it little.
_MAX_WALK_THREADS = 4


class CompiledGrammar(NamedTuple):
    """A grammar at its start.

    Attributes:
        matcher: to be copied by each user.
        mask: of the tokens it may begin with, see `GrammarStates.masks`.
    """

    matcher: LLMatcher
    mask: bytes


class GrammarCompiler:
    """Compiles grammars off the loop and keeps the last ones.

    Args:
        checkpoint_path: whose vocabulary; read when the first grammar comes.
        vocab_size: rows of the output layer.
    """

    def __init__(self, checkpoint_path: str, vocab_size: int) -> None:
        self._checkpoint_path = checkpoint_path
        self._vocab_size = vocab_size
        self._executor = ThreadPoolExecutor(_NUM_COMPILE_THREADS, thread_name_prefix="grammar")
        self._compiled: OrderedDict[str, Future[CompiledGrammar]] = OrderedDict()
        self._lock = threading.Lock()
        self._ll_tokenizer: LLTokenizer | None = None

    def compile(self, grammar: str) -> Future[CompiledGrammar]:
        """Returns a future of the compiled grammar; its error is a GrammarError."""
        future = self._compiled.get(grammar)
        if future is None or (future.done() and future.exception() is not None):
            future = self._compiled[grammar] = self._executor.submit(self._compile, grammar)
            while len(self._compiled) > _MAX_CACHED_GRAMMARS:
                self._compiled.popitem(last=False)
        else:
            self._compiled.move_to_end(grammar)
        return future

    def _compile(self, grammar: str) -> CompiledGrammar:
        with self._lock:
            if self._ll_tokenizer is None:
                try:
                    tokenizer = Tokenizer.from_folder(Path(self._checkpoint_path))
                    self._ll_tokenizer = make_ll_tokenizer(tokenizer, self._vocab_size)
                except Exception as error:
                    logger.error("the vocabulary cannot be read any more: %s", error)
                    raise GrammarError("the server cannot read its vocabulary any more") from error
        matcher = compile_grammar(self._ll_tokenizer, grammar)
        mask = bytes(matcher.compute_bitmask())
        if _is_empty(mask):
            raise GrammarError("it allows no reply at all")
        return CompiledGrammar(matcher, mask)


def _is_empty(mask: bytes) -> bool:
    return mask.count(0) == len(mask)


class _Walk:
    """Where a sequence is in its grammar.

    Attributes:
        mask: of what may follow; empty while that is being found out.
        token_ids: the last tokens, of one step.
        forced: tokens that must follow, as far as the grammar leaves no choice and guesses are wanted.
        ahead: looks what is allowed behind guesses, in a step that tries some.
        can_guess: whether guesses are worth their time; not where one took long.
        is_known: done when it is known what may follow the last token.
        is_over: nothing may follow any more, or nobody wants to know.
    """

    __slots__ = (
        "account",
        "ahead",
        "can_guess",
        "compiled",
        "forced",
        "is_known",
        "is_over",
        "mask",
        "matcher",
        "token_ids",
    )

    def __init__(self, compiled: CompiledGrammar, account: GrammarAccount, *, can_guess: bool) -> None:
        self.compiled = compiled
        self.account = account
        self.matcher: LLMatcher | None = None
        self.mask = compiled.mask
        self.token_ids: list[int] = []
        self.forced: list[int] = []
        self.ahead: LookAhead | None = None
        self.can_guess = can_guess
        self.is_known: Future[None] = Future()
        self.is_over = False

    def take(self, token_ids: list[int]) -> None:
        """Begins to be busy."""
        self.mask = b""
        self.token_ids = token_ids
        self.forced = []
        if self.ahead is not None:
            self.can_guess = self.can_guess and not self.ahead.is_slow
            self.ahead = None
        self.is_known = Future()

    def mask_behind(self, num_guesses: int) -> bytes | None:
        """Returns what is allowed behind so many guesses, or None where that is not known."""
        if num_guesses == 0:
            return self.mask
        masks = [] if self.ahead is None else self.ahead.masks()
        return masks[num_guesses - 1] if num_guesses <= len(masks) else None

    def go_on(self) -> str | None:
        """Finds out what may follow the last token; sets `mask` and `forced`, or `is_over`.

        Returns:
            Why it cannot be known, or None.
        """
        started = time.thread_time()
        if self.matcher is None:
            self.matcher = self.compiled.matcher.deep_copy()
        matcher = self.matcher
        for token_id in self.token_ids:
            matcher.consume_token(token_id)
        is_complete = matcher.is_stopped()
        mask = b"" if is_complete else bytes(matcher.compute_bitmask())
        if matcher.is_error():
            logger.warning("a grammar failed: %s", matcher.get_error()[:300])
            return TOO_COMPLEX
        if not is_complete and _is_empty(mask):  # the sampler would call it a damaged checkpoint
            return STUCK
        spent_s = time.thread_time() - started
        if not self.account.pay(spent_s, len(self.token_ids)):
            return TOO_SLOW
        self.can_guess = self.can_guess and spent_s < _MAX_GUESSABLE_S
        if self.can_guess and not is_complete:
            self.forced = forced_tokens(matcher)
        self.is_over = is_complete
        self.mask = mask
        return None


class GrammarStates:
    """Where each constrained sequence is in its grammar.

    Args:
        vocab_size: columns of the logits.
        speculates: whether guesses are tried.
    """

    def __init__(self, vocab_size: int, *, speculates: bool = False) -> None:
        self._speculates = speculates
        self._num_words = (vocab_size + 31) // 32
        self._walks: dict[int, _Walk] = {}
        num_threads = max(1, min(_MAX_WALK_THREADS, (os.cpu_count() or 1) // 2))
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix="grammar walk")
        self._lock = threading.Lock()
        # What is to be found out, by what is left to those who ask.
        self._due: list[tuple[float, int, int, _Walk]] = []
        self._numbers = itertools.count()
        self._ended: dict[int, str | None] = {}

    def start(self, seq_id: int, compiled: CompiledGrammar, account: GrammarAccount) -> None:
        """Lets a sequence begin."""
        self._walks[seq_id] = _Walk(compiled, account, can_guess=self._speculates)

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
        return {seq_id for seq_id, walk in self._walks.items() if not walk.mask}

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
                walk.ahead = LookAhead.start(walk.matcher or walk.compiled.matcher, draft_ids, self._executor)

    def num_followed(self, seq_id: int, num_draft_tokens: int) -> int:
        """Returns how many of a sequence's guesses can be checked: behind each of them it is known what is allowed."""
        walk = self._walks.get(seq_id)
        if walk is None:
            return num_draft_tokens
        return 0 if walk.ahead is None else len(walk.ahead.masks())

    def masks(self, places: AlignedList[tuple[int, int]]) -> torch.Tensor | None:
        """Allowed next tokens.

        Args:
            places: of each row of a step the sequence, and how many guesses behind its last token the row is.

        Returns:
            [S, ceil(vocab_size / 32)] int32 bit masks on the CPU, all ones for sequences without a grammar;
            None when no row has one.
        """
        if not self._walks or not any(seq_id in self._walks for seq_id, _ in places):
            return None
        masks = torch.full((len(places), self._num_words), -1, dtype=torch.int32)
        for row, (seq_id, num_guesses) in enumerate(places):
            walk = self._walks.get(seq_id)
            if walk is not None and (mask := walk.mask_behind(num_guesses)) is not None:
                words = masks[row]
                words.zero_()
                bits = torch.frombuffer(bytearray(mask or bytes(4)), dtype=torch.int32)
                count = min(len(bits), len(words))
                words[:count] = bits[:count]
        return masks

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
        return bool(self._ended) or any(walk.mask and walk.is_known.done() for walk in self._walks.values())

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
