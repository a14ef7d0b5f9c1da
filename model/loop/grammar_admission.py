"""Requests that wait for their grammars to be compiled, off the loop, before they are scheduled."""

from __future__ import annotations

import logging
from collections.abc import Collection
from concurrent.futures import Future

from model.contract.grammar_compiler import GrammarAccount, GrammarError
from model.sampling.compiled_grammars import CompiledGrammar, GrammarCompiler
from model.sampling.grammar_states import GrammarStates
from model.scheduling.sequence import Sequence

logger = logging.getLogger(__name__)


class GrammarAdmission:
    """Compiles grammars and lets their sequences begin in `states`."""

    def __init__(self, compiler: GrammarCompiler, states: GrammarStates) -> None:
        self._compiler = compiler
        self._states = states
        self._waiting: list[tuple[Future[CompiledGrammar], list[Sequence]]] = []

    @property
    def num_waiting(self) -> int:
        """Sequences whose grammar is being compiled, or is ready and not taken."""
        return sum(len(sequences) for _, sequences in self._waiting)

    @property
    def has_news(self) -> bool:
        """Whether `take_ready` would return something."""
        return any(future.done() for future, _ in self._waiting)

    def add(self, grammar: str, sequences: list[Sequence]) -> None:
        """Takes in the choices of one prompt, which share an account of CPU time."""
        self._waiting.append((self._compiler.compile(grammar), sequences))

    def abort(self, seq_ids: Collection[int]) -> None:
        """Forgets sequences; unknown ids are ignored."""
        left = [(future, [seq for seq in seqs if seq.seq_id not in seq_ids]) for future, seqs in self._waiting]
        self._waiting = [(future, seqs) for future, seqs in left if seqs]

    def take_ready(self) -> list[tuple[list[Sequence], str | None]]:
        """Returns the requests whose grammar is ready, each with None or with why it cannot be used."""
        ready = [entry for entry in self._waiting if entry[0].done()]
        if not ready:
            return []
        self._waiting = [entry for entry in self._waiting if entry not in ready]
        return [(sequences, self._start(future, sequences)) for future, sequences in ready]

    def _start(self, future: Future[CompiledGrammar], sequences: list[Sequence]) -> str | None:
        error = future.exception()
        if error is not None:
            if not isinstance(error, GrammarError):
                logger.error("a grammar failed to compile", exc_info=error)
            return f"The grammar cannot be used: {error}"
        account = GrammarAccount()
        for seq in sequences:
            self._states.start(seq.seq_id, future.result(), account)
        return None
