"""Log-probabilities as the APIs report them: of the tokens of a text, and of a prompt's."""

from __future__ import annotations

from collections.abc import Sequence

from model.contract.messages import TokenLogprob
from model.contract.tokenizer import Tokenizer
from server.replies.token_text import TokenEntry
from server.wire.shapes.chat import ChatTokenLogprob
from server.wire.shapes.generation import PromptLogprob, PromptLogprobs


def text_logprobs(
    entries: Sequence[TokenEntry], num_top: int, tokenizer: Tokenizer, *, return_tokens_as_token_ids: bool = False
) -> list[ChatTokenLogprob]:
    """Returns an object for each token that is shown, with `num_top` alternatives, as chats and responses have it."""

    def name(token_id: int) -> str:
        return f"token_id:{token_id}" if return_tokens_as_token_ids else tokenizer.token_name(token_id)

    def report(entry: TokenEntry, shown: bytes) -> ChatTokenLogprob:
        score = entry.logprob
        whole = return_tokens_as_token_ids or shown == tokenizer.token_bytes(entry.token_id)
        return {
            "token": name(entry.token_id) if whole else shown.decode("utf-8", errors="replace"),
            "logprob": score.logprob,
            "bytes": list(shown),
            "top_logprobs": [
                {"token": name(token_id), "logprob": logprob, "bytes": list(tokenizer.token_bytes(token_id))}
                for token_id, logprob in zip(score.top_ids[:num_top], score.top_logprobs[:num_top], strict=True)
            ],
        }

    return [report(entry, entry.shown) for entry in entries if entry.shown is not None]


def prompt_logprobs(
    ids: Sequence[int], scores: Sequence[TokenLogprob], num_top: int, tokenizer: Tokenizer
) -> PromptLogprobs:
    """Returns an entry for each token of a prompt, as vLLM does: its own score and `num_top` alternatives, by id.

    Args:
        scores: one for each of `ids` but the first, which nothing comes before: its entry is None.
    """

    def named(token_id: int, logprob: float, rank: int | None) -> PromptLogprob:
        return {"logprob": logprob, "rank": rank, "decoded_token": tokenizer.token_name(token_id)}

    entries: PromptLogprobs = [None]
    for token_id, score in zip(ids[1:], scores, strict=True):
        entry = {str(token_id): named(token_id, score.logprob, score.rank)}
        best = zip(score.top_ids[:num_top], score.top_logprobs[:num_top], strict=True)
        for rank, (top_id, logprob) in enumerate(best, start=1):
            entry.setdefault(str(top_id), named(top_id, logprob, rank))
        entries.append(entry)
    return entries
