"""Turns a grammar's text into an automaton over a vocabulary, within bounds on time and memory.

No tensors here: the HTTP process compiles too, to refuse a grammar before its request is accepted.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from model.contract.tokenizer import PATTERN, Tokenizer

# The largest grammar text taken: beyond it compiling may take seconds, and no real schema comes near.
MAX_GRAMMAR_CHARS = 256 * 1024

# A quarter of llguidance's default, which lets a hostile grammar compile for eight seconds.
_MAX_GRAMMAR_SYMBOLS = 125_000
# Items that the parser keeps for one place: a choice takes one, an optional property two. It bounds the cost of a token
# under an ambiguous grammar, whose account mostly ends it before.
_MAX_ITEMS_IN_ROW = 2000

# CPU time of the choices of one prompt: the credit that they begin with, what each token adds, the most for one token.
ACCOUNT_S = 5.0
ALLOWANCE_S = 0.005
MAX_TOKEN_S = 1.0
_BEHIND_S = 0.05


# An error ends with the numbered lines of the grammar, ours around the client's schema.
_QUOTED_GRAMMAR = re.compile(r"^ *\d+ \| ", re.MULTILINE)


class GrammarError(Exception):
    """A grammar cannot be compiled; the message says why."""


class GrammarAccount:
    """CPU time that the choices of one prompt may still spend on following their grammar. Any thread may use it."""

    def __init__(self) -> None:
        self.left_s = ACCOUNT_S
        self._lock = threading.Lock()

    @property
    def is_behind(self) -> bool:
        """Whether so much was spent beyond the allowance that other sequences should not wait for it."""
        return self.left_s < ACCOUNT_S - _BEHIND_S

    def pay(self, spent_s: float, num_tokens: int = 1) -> bool:
        """Takes the cost of some tokens; returns whether the next one may be looked for."""
        with self._lock:
            self.left_s = min(ACCOUNT_S, self.left_s + ALLOWANCE_S * num_tokens - spent_s)
        return self.left_s > 0 and spent_s < MAX_TOKEN_S


def make_ll_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> LLTokenizer:
    """Builds llguidance's view of a vocabulary (half a second for 151,643 ranks).

    Args:
        vocab_size: rows of the output layer; ids without a token are never allowed.
    """
    encoding = tokenizer.encoding
    from_tiktoken: Callable[..., LLTokenizer] = LLTokenizer.from_tiktoken  # type: ignore[attr-defined]  # no stub
    return from_tiktoken(
        encoder=encoding._mergeable_ranks,
        special_tokens=encoding._special_tokens,
        pattern=PATTERN,
        eos_token=[tokenizer.endoftext_id, tokenizer.im_end_id, tokenizer.im_start_id],
        n_vocab=max(vocab_size, tokenizer.num_tokens),
    )


def _limits() -> LLParserLimits:
    return LLParserLimits(
        max_grammar_size=_MAX_GRAMMAR_SYMBOLS, max_items_in_row=_MAX_ITEMS_IN_ROW, verbose_errors=False
    )


def compile_grammar(ll_tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """Compiles a grammar within llguidance's resource limits.

    Raises:
        GrammarError: it is malformed, impossible or too large.
    """
    if len(grammar) > MAX_GRAMMAR_CHARS:
        raise GrammarError(f"it is longer than {MAX_GRAMMAR_CHARS} characters")
    matcher = LLMatcher(ll_tokenizer, grammar, log_level=0, limits=_limits())
    if not matcher.is_error():
        # The first mask is where an over-large lexer shows; better here than in a step.
        matcher.compute_bitmask()
    if matcher.is_error():
        raise GrammarError(_reason(matcher.get_error()))
    return matcher


def _reason(text: str) -> str:
    """Puts a compiler's error on one line, without the grammar that it quotes."""
    lines = [line.strip() for line in _QUOTED_GRAMMAR.split(text, maxsplit=1)[0].splitlines()]
    said = " ".join(line for line in lines if line.strip("^"))
    # Where in our own wrapping a schema fails is no news to whoever wrote the schema.
    return said.rpartition("failed to compile JSON schema: ")[2] or "it cannot be compiled"
