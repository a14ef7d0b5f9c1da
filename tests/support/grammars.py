"""One checker of grammars for all unit tests of a vocabulary: starting its worker takes half a second."""

from __future__ import annotations

import atexit

from server.grammars.check import GrammarChecker
from tests.support.vocabulary import byte_tokenizer

GRAMMARS = GrammarChecker(byte_tokenizer())
atexit.register(GRAMMARS.close)
