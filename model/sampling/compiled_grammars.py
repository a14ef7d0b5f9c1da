"""Compiles grammars on a thread, so that no step waits for one, and keeps the last ones.

It must not know where a grammar comes from: it is one text, in llguidance's Lark dialect or its JSON form.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from llguidance import LLMatcher, LLTokenizer

from model.contract.grammar_compiler import GrammarError, compile_grammar, make_ll_tokenizer
from model.contract.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_MAX_CACHED_GRAMMARS = 128


class CompiledGrammar(NamedTuple):
    """A grammar at its start.

    Attributes:
        matcher: copied for each sequence.
        mask: tokens that a reply may begin with, as `read_mask` returns them.
    """

    matcher: LLMatcher
    mask: torch.Tensor


def num_mask_words(vocab_size: int) -> int:
    """Returns how many words hold a bit for each token."""
    return (vocab_size + 31) // 32


def read_mask(matcher: LLMatcher, num_words: int) -> torch.Tensor:
    """Returns what a grammar allows next: [num_words] int32, bit i of word w standing for token 32 * w + i."""
    return torch.frombuffer(bytearray(matcher.compute_bitmask()), dtype=torch.int32)[:num_words]


class GrammarCompiler:
    """Compiles each grammar once while it is remembered.

    Args:
        checkpoint_path: a folder or file with the vocabulary, which is read when the first grammar comes.
        vocab_size: rows of the output layer.
    """

    def __init__(self, checkpoint_path: str, vocab_size: int) -> None:
        self._checkpoint_path = checkpoint_path
        self._vocab_size = vocab_size
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="grammar")
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
        mask = read_mask(matcher, num_mask_words(self._vocab_size))
        if not mask.any():
            raise GrammarError("it allows no reply at all")
        return CompiledGrammar(matcher, mask)
