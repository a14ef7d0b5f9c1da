"""Log-probabilities of a prompt's tokens as vLLM reports them (`prompt_logprobs`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model.contract.messages import TokenLogprob
from model.contract.tokenizer import Tokenizer


def prompt_logprobs(
    ids: Sequence[int], scores: Sequence[TokenLogprob], num_top: int, tokenizer: Tokenizer
) -> list[dict[str, Any] | None]:
    """Returns an entry for each token of a prompt: the token's own score and the best alternatives, by id.

    Args:
        ids: of the prompt.
        scores: of each of them but the first, which nothing comes before: its entry is None.
        num_top: alternatives to report.
        tokenizer: names them.
    """

    def named(token_id: int, logprob: float, rank: int | None) -> dict[str, Any]:
        return {"logprob": logprob, "rank": rank, "decoded_token": tokenizer.token_name(token_id)}

    entries: list[dict[str, Any] | None] = [None]
    for token_id, score in zip(ids[1:], scores, strict=True):
        entry = {str(token_id): named(token_id, score.logprob, score.rank)}
        best = zip(score.top_ids[:num_top], score.top_logprobs[:num_top], strict=True)
        for rank, (top_id, logprob) in enumerate(best, start=1):
            entry.setdefault(str(top_id), named(top_id, logprob, rank))
        entries.append(entry)
    return entries
