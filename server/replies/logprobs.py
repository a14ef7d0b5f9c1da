"""Log-probabilities of a text's tokens as chats and responses report them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model.contract.tokenizer import Tokenizer
from server.replies.token_text import TokenEntry

JsonDict = dict[str, Any]


def text_logprobs(
    entries: Sequence[TokenEntry], num_top: int, tokenizer: Tokenizer, *, return_tokens_as_token_ids: bool = False
) -> list[JsonDict]:
    """Returns an object for each token that is shown.

    Args:
        entries: of the text.
        num_top: alternatives to report.
        tokenizer: names them.
        return_tokens_as_token_ids: name tokens by their ids.
    """

    def name(token_id: int) -> str:
        return f"token_id:{token_id}" if return_tokens_as_token_ids else tokenizer.token_name(token_id)

    def report(entry: TokenEntry, shown: bytes) -> JsonDict:
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
