"""Constrained decoding: which tokens a grammar allows next, for the sequences that have one.

The automata are llguidance's; ours is the bookkeeping: grammars are compiled on threads so that no step waits for
one, compiled ones are kept, and each sequence walks its own copy. It must not know where a grammar comes from; it is
one text, in llguidance's Lark dialect or its JSON form.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence as AlignedList
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from llguidance import LLMatcher, LLTokenizer

from model.grammar_compiler import compile_grammar, make_ll_tokenizer
from model.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_MAX_CACHED_GRAMMARS = 128
_NUM_COMPILE_THREADS = 1


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
        self._compiled: OrderedDict[str, Future[LLMatcher]] = OrderedDict()
        self._lock = threading.Lock()
        self._ll_tokenizer: LLTokenizer | None = None

    def compile(self, grammar: str) -> Future[LLMatcher]:
        """Returns a future of the grammar's matcher, to be copied by each user; its error is a GrammarError."""
        future = self._compiled.get(grammar)
        if future is None:
            future = self._compiled[grammar] = self._executor.submit(self._compile, grammar)
            while len(self._compiled) > _MAX_CACHED_GRAMMARS:
                self._compiled.popitem(last=False)
        else:
            self._compiled.move_to_end(grammar)
        return future

    def _compile(self, grammar: str) -> LLMatcher:
        with self._lock:
            if self._ll_tokenizer is None:
                tokenizer = Tokenizer.from_folder(Path(self._checkpoint_path))
                self._ll_tokenizer = make_ll_tokenizer(tokenizer, self._vocab_size)
        return compile_grammar(self._ll_tokenizer, grammar)


class GrammarStates:
    """Where each constrained sequence is in its grammar.

    Args:
        vocab_size: columns of the logits.
    """

    def __init__(self, vocab_size: int) -> None:
        self._num_words = (vocab_size + 31) // 32
        self._matchers: dict[int, LLMatcher] = {}

    def start(self, seq_id: int, compiled: LLMatcher) -> None:
        """Gives a sequence its own copy of a compiled grammar."""
        self._matchers[seq_id] = compiled.deep_copy()

    def forget(self, seq_id: int) -> None:
        """Drops the state of a sequence that ended."""
        self._matchers.pop(seq_id, None)

    def masks(self, seq_ids: AlignedList[int]) -> torch.Tensor | None:
        """Allowed next tokens.

        Args:
            seq_ids: the rows of a step.

        Returns:
            [S, ceil(vocab_size / 32)] int32 bit masks on the CPU, all ones for sequences without a grammar;
            None when no row has one. A matcher that fails allows nothing, so its row comes out as invalid.
        """
        if not any(seq_id in self._matchers for seq_id in seq_ids):
            return None
        masks = torch.full((len(seq_ids), self._num_words), -1, dtype=torch.int32)
        for row, seq_id in enumerate(seq_ids):
            if (matcher := self._matchers.get(seq_id)) is not None:
                words = masks[row]
                words.zero_()
                bits = torch.frombuffer(bytearray(_allowed(matcher)), dtype=torch.int32)
                count = min(len(bits), len(words))
                words[:count] = bits[:count]
        return masks

    def advance(self, seq_id: int, token_id: int) -> bool:
        """Takes a sampled token.

        Returns:
            Whether the grammar is complete: nothing may follow, so the sequence ends here.
        """
        matcher = self._matchers.get(seq_id)
        if matcher is None:
            return False
        try:
            return not matcher.consume_token(token_id) or matcher.is_stopped()
        except BaseException as error:
            _reraise_unless_ours(error)
            return True


def _allowed(matcher: LLMatcher) -> bytes:
    """The bit mask of a matcher; of one that fails, four zero bytes."""
    try:
        if not matcher.is_error():
            return bytes(matcher.compute_bitmask())
    except BaseException as error:
        _reraise_unless_ours(error)
    return bytes(4)


def _reraise_unless_ours(error: BaseException) -> None:
    """A panic in the library is no Exception, but it concerns one sequence like any other failure of its."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        raise error
    logger.error("a grammar failed: %s", error)
