"""One checker of grammars for all unit tests of a vocabulary: starting its worker takes half a second."""

from __future__ import annotations

import atexit
from typing import Any

from server.grammars.check import GrammarChecker
from tests.support.vocabulary import byte_tokenizer

GRAMMARS = GrammarChecker(byte_tokenizer())
atexit.register(GRAMMARS.close)


# Multiples of many primes: an automaton with millions of states.
HUNGRY: dict[str, Any] = {"type": "integer", "allOf": [{"multipleOf": prime} for prime in (7, 11, 13, 17, 19, 23)]}
