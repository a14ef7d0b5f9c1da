"""How the context is shared between a prompt and its reply."""

from __future__ import annotations

from collections.abc import Iterable

from model.errors import InvalidRequestError
from model.tokenizer import Tokenizer

_SHORT_REPLY_TOKENS = 512
# Outside of ASCII, normalisation may join so many characters into one.
_MAX_JOINED_CHARS = 4


def refuse_hopeless_length(texts: Iterable[str], tokenizer: Tokenizer, max_model_len: int, *, param: str) -> None:
    """Refuses texts that cannot fit whatever tokens they become, before the work of finding out which.

    Args:
        texts: each, or what there is of it, goes into one prompt.
        tokenizer: of the checkpoint.
        max_model_len: prompt and reply together.
        param: the field they came from.

    Raises:
        InvalidRequestError: one does not fit, with code `context_length_exceeded`.
    """
    limit = max_model_len * tokenizer.longest_token_bytes
    for text in texts:
        if len(text) > (limit if text.isascii() else limit * _MAX_JOINED_CHARS):
            raise InvalidRequestError(
                f"This model's maximum context length is {max_model_len} tokens. However, your {param} has a text of"
                f" {len(text)} characters, which cannot fit. Please reduce the length of the {param}.",
                param=param,
                code="context_length_exceeded",
            )


def prompt_window(truncation: str, asked: int | None, max_model_len: int, *, clamp: bool = False) -> int | None:
    """Returns how many tokens of prompt to keep, or None to keep all.

    Room is left for the tokens asked for; where none are, for a short reply.

    Args:
        truncation: "auto" or "disabled".
        asked: tokens that the request asks for, or None.
        max_model_len: prompt and reply together.
        clamp: what is asked for is cut to what is left.

    Raises:
        InvalidRequestError: another truncation.
    """
    if truncation == "disabled":
        return None
    if truncation != "auto":
        raise InvalidRequestError(f"'truncation' is 'auto' or 'disabled', not {truncation[:40]!r}.", param="truncation")
    short = min(_SHORT_REPLY_TOKENS, max_model_len // 4)
    room = short if asked is None else min(asked, short) if clamp else asked
    return max(1, max_model_len - room)


def budget(
    num_prompt_tokens: int,
    asked: int | None,
    max_model_len: int,
    *,
    default: int | None = None,
    param: str = "max_tokens",
    prompt_param: str = "prompt",
    clamp: bool = False,
) -> int:
    """Returns how many tokens may be generated.

    Args:
        num_prompt_tokens: of the prompt.
        asked: what the request asks for, or None.
        max_model_len: prompt and reply together.
        default: where nothing is asked for; None is what is left of the context.
        param: the field that asked.
        prompt_param: the field that holds the prompt.
        clamp: cut what is asked for to what is left.

    Raises:
        InvalidRequestError: it does not fit, with code `context_length_exceeded`.
    """
    left = max_model_len - num_prompt_tokens
    if left < (0 if asked == 0 else 1):
        raise InvalidRequestError(
            f"This model's maximum context length is {max_model_len} tokens. However, your {prompt_param} resulted in"
            f" {num_prompt_tokens} tokens. Please reduce the length of the {prompt_param}.",
            param=prompt_param,
            code="context_length_exceeded",
        )
    if asked is None:
        return left if default is None else min(default, left)
    if clamp:
        return min(asked, left)
    if asked > left:
        raise InvalidRequestError(
            f"This model's maximum context length is {max_model_len} tokens. However, you requested"
            f" {num_prompt_tokens + asked} tokens ({num_prompt_tokens} in the {prompt_param}, {asked} in the"
            f" completion). Please reduce the length of the {prompt_param} or '{param}' (at most {left}).",
            param=param,
            code="context_length_exceeded",
        )
    return asked
