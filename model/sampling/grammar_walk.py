"""Where one sequence is in its grammar: takes its tokens, and finds out what may follow them."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future

import torch
from llguidance import LLMatcher

from model.contract.grammar_compiler import GrammarAccount
from model.sampling.compiled_grammars import CompiledGrammar, read_mask
from model.sampling.look_ahead import LookAhead, forced_tokens

logger = logging.getLogger(__name__)

TOO_SLOW = "The grammar takes too long to follow: it can be read in too many ways. Make it unambiguous, or simpler."
STUCK = "The grammar is not complete, yet allows nothing after what this reply has so far; mend it where it ends there."
TOO_COMPLEX = "The grammar became too complex to follow with this reply; make it unambiguous, or simpler."

# Nothing is guessed where a step's tokens took longer to follow.
_MAX_GUESSABLE_S = 0.005


class GrammarWalk:
    """A sequence's walk through its grammar, on a copy of the matcher.

    Attributes:
        account: CPU time that the choices of a prompt may still spend.
        mask: what may follow, as `read_mask` returns it; None while that is being found out, and at the end.
        token_ids: the tokens of the last step.
        forced: tokens that must follow, as far as the grammar leaves no choice and guesses are wanted.
        ahead: finds out what is allowed behind guesses, in a step that tries some.
        can_guess: whether guesses are worth their time; False once one took long.
        is_known: done when it is known what may follow the last token.
        is_over: nothing may follow any more, or nobody wants to know.
    """

    def __init__(self, compiled: CompiledGrammar, account: GrammarAccount, *, can_guess: bool) -> None:
        self._compiled = compiled
        self._matcher: LLMatcher | None = None
        self.account = account
        self.mask: torch.Tensor | None = compiled.mask
        self.token_ids: list[int] = []
        self.forced: list[int] = []
        self.ahead: LookAhead | None = None
        self.can_guess = can_guess
        self.is_known: Future[None] = Future()
        self.is_over = False

    @property
    def matcher(self) -> LLMatcher:
        """The matcher at the last token, to be copied."""
        return self._matcher or self._compiled.matcher

    def take(self, token_ids: list[int]) -> None:
        """Takes the tokens of a step; `go_on` finds out what they mean."""
        self.mask = None
        self.token_ids = token_ids
        self.forced = []
        if self.ahead is not None:
            self.can_guess = self.can_guess and not self.ahead.is_slow
            self.ahead = None
        self.is_known = Future()

    def mask_behind(self, num_guesses: int) -> torch.Tensor | None:
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
        if self._matcher is None:
            self._matcher = self._compiled.matcher.deep_copy()
        matcher = self._matcher
        for token_id in self.token_ids:
            matcher.consume_token(token_id)
        mask = None if matcher.is_stopped() else read_mask(matcher, len(self._compiled.mask))
        if matcher.is_error():
            logger.warning("a grammar failed: %s", matcher.get_error()[:300])
            return TOO_COMPLEX
        if mask is not None and not mask.any():  # the sampler would call it a damaged checkpoint
            return STUCK
        spent_s = time.thread_time() - started
        if not self.account.pay(spent_s, len(self.token_ids)):
            return TOO_SLOW
        self.can_guess = self.can_guess and spent_s < _MAX_GUESSABLE_S
        if self.can_guess and mask is not None:
            self.forced = forced_tokens(matcher)
        self.is_over = mask is None
        self.mask = mask
        return None
