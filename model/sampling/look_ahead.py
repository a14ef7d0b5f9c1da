"""What a grammar allows behind guesses, found out while the device computes them.

It works on a copy: whether the guesses are right is not known yet, and what goes wrong behind a wrong one must not
concern the sequence. So it costs a sequence nothing but its guesses, be they ever so hard to follow.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence as AlignedList
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError

import torch
from llguidance import LLMatcher

from model.sampling.compiled_grammars import read_mask

logger = logging.getLogger(__name__)

# CPU time for all guesses of a sequence in a step; what comes later is not checked. Most take some 10 us each.
_MAX_S = 0.01
# Beyond the time of the step itself it is waited for so long.
_PATIENCE_S = 0.02


class LookAhead:
    """Follows guesses on a thread, from the moment it is made.

    Args:
        matcher: a copy of the sequence's, at its last token.
        draft_ids: guessed tokens.
        num_words: width of masks.

    Attributes:
        is_slow: whether guesses of this sequence take longer than they can be worth.
    """

    def __init__(
        self, matcher: LLMatcher, draft_ids: AlignedList[int], num_words: int, executor: ThreadPoolExecutor
    ) -> None:
        self._matcher = matcher
        self._num_words = num_words
        self._draft_ids = draft_ids
        self._done: Future[list[torch.Tensor]] = executor.submit(self._follow)
        self._known: list[torch.Tensor] | None = None
        self.is_slow = False

    @classmethod
    def start(
        cls, matcher: LLMatcher, draft_ids: AlignedList[int], num_words: int, executor: ThreadPoolExecutor
    ) -> LookAhead | None:
        """Begins with a copy of a sequence's matcher, if it can be copied."""
        try:
            return cls(matcher.deep_copy(), draft_ids, num_words, executor)
        except BaseException as error:  # a panic in the library is no Exception
            logger.debug("a grammar cannot be copied: %s", error)
            return None

    def masks(self) -> list[torch.Tensor]:
        """Waits a moment and returns what is allowed behind the first guess, behind two, and so on: as far as is known.

        It is not known behind a guess that is not allowed itself, or that completes the grammar.
        """
        if self._known is None:
            try:
                self._known = self._done.result(_PATIENCE_S)
            except TimeoutError:
                self.is_slow = True
                self._known = []
        return self._known

    def _follow(self) -> list[torch.Tensor]:
        started = time.thread_time()
        masks: list[torch.Tensor] = []
        matcher = self._matcher
        try:
            for token_id in self._draft_ids:
                if matcher.validate_tokens([token_id]) != 1 or not matcher.consume_token(token_id):
                    break
                if matcher.is_stopped():
                    break
                mask = read_mask(matcher, self._num_words)
                if matcher.is_error() or not mask.any():
                    break
                masks.append(mask)
                if time.thread_time() - started > _MAX_S:
                    self.is_slow = True
                    break
        except BaseException as error:
            logger.debug("guesses cannot be followed: %s", error)
        return masks


def forced_tokens(matcher: LLMatcher) -> list[int]:
    """Returns the tokens that a grammar leaves no choice about, as they are most likely split; mostly none."""
    try:
        return list(matcher.deep_copy().compute_ff_tokens())  # of a copy: it takes the parser there
    except BaseException as error:
        logger.debug("what a grammar forces cannot be found out: %s", error)
        return []
