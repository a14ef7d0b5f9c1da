"""Small vocabularies for tests of text."""

from __future__ import annotations

from model.contract.messages import TokenLogprob
from model.contract.tokenizer import Tokenizer


def byte_tokenizer(*merges: bytes) -> Tokenizer:
    """A tokenizer of the 256 bytes, and of longer tokens after them (ids from 256)."""
    ranks = {bytes([i]): i for i in range(256)}
    ranks.update({token: 256 + i for i, token in enumerate(merges)})
    return Tokenizer(ranks)


def score(token_id: int, logprob: float = -1.0) -> TokenLogprob:
    """A log-probability whose best alternative is the token itself."""
    return TokenLogprob(logprob, [token_id, (token_id + 1) % 256], [logprob, logprob - 1])
