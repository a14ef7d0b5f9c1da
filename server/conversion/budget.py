"""Limits of a request: how a prompt and its reply share the context, and how much one request may ask for in all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from model.contract.errors import InvalidRequestError
from model.contract.sampling_params import SamplingParams
from model.contract.tokenizer import Tokenizer
from server.engine.client import Prompt

# Log-probabilities of one reply that is not streamed; each takes 64 bytes of JSON.
MAX_REPLY_LOGPROBS = 1 << 19
MAX_ALTERNATIVES = 20
_SHORT_REPLY_TOKENS = 512
# Normalisation may join so many characters that are not ASCII into one.
_MAX_JOINED_CHARS = 4


def refuse_hopeless_length(texts: Iterable[str], tokenizer: Tokenizer, max_model_len: int, *, param: str) -> None:
    """Refuses texts that cannot fit whatever tokens they become, before the work of finding out which.

    Args:
        texts: the texts of one prompt.
        max_model_len: the most tokens of prompt and reply together.
        param: the field they came from.

    Raises:
        InvalidRequestError: they do not fit, with code `context_length_exceeded`.
    """
    limit = max_model_len * tokenizer.longest_token_bytes
    num_chars = num_least_bytes = 0
    for text in texts:
        num_chars += len(text)
        num_least_bytes += len(text) // (1 if text.isascii() else _MAX_JOINED_CHARS)
    if num_least_bytes > limit:
        had = f"your {param} has {num_chars} characters of text, which cannot fit"
        raise _too_long(max_model_len, had, f"the length of the {param}", param)


def _too_long(max_model_len: int, had: str, to_reduce: str, param: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"This model's maximum context length is {max_model_len} tokens. However, {had}. Please reduce {to_reduce}.",
        param=param,
        code="context_length_exceeded",
    )


def prompt_window(truncation: str, max_tokens: int | None, max_model_len: int, *, clamp: bool = False) -> int | None:
    """Returns how many tokens of prompt to keep, or None to keep all.

    Room is left for `max_tokens`; where there is no limit, for a short reply.

    Args:
        truncation: "auto" or "disabled".
        max_tokens: the request's limit for its reply; None is no limit.
        max_model_len: the most tokens of prompt and reply together.
        clamp: cut `max_tokens` to what is left.

    Raises:
        InvalidRequestError: another truncation.
    """
    if truncation == "disabled":
        return None
    if truncation != "auto":
        raise InvalidRequestError(f"'truncation' is 'auto' or 'disabled', not {truncation[:40]!r}.", param="truncation")
    short = min(_SHORT_REPLY_TOKENS, max_model_len // 4)
    room = short if max_tokens is None else min(max_tokens, short) if clamp else max_tokens
    return max(1, max_model_len - room)


def budget(
    num_prompt_tokens: int,
    max_tokens: int | None,
    max_model_len: int,
    *,
    default: int | None = None,
    param: str = "max_tokens",
    prompt_param: str = "prompt",
    clamp: bool = False,
) -> int:
    """Returns how many tokens may be generated.

    Args:
        max_tokens: the request's limit for its reply; None is no limit.
        max_model_len: the most tokens of prompt and reply together.
        default: the limit of requests that name none; None is what is left of the context.
        param: the field of `max_tokens`.
        prompt_param: the field that holds the prompt.
        clamp: cut `max_tokens` to what is left.

    Raises:
        InvalidRequestError: it does not fit, with code `context_length_exceeded`.
    """
    left = max_model_len - num_prompt_tokens
    if left < (0 if max_tokens == 0 else 1):
        had = f"your {prompt_param} resulted in {num_prompt_tokens} tokens"
        raise _too_long(max_model_len, had, f"the length of the {prompt_param}", prompt_param)
    if max_tokens is None:
        return left if default is None else min(default, left)
    if clamp:
        return min(max_tokens, left)
    if max_tokens > left:
        parts = f"{num_prompt_tokens} in the {prompt_param}, {max_tokens} in the completion"
        had = f"you requested {num_prompt_tokens + max_tokens} tokens ({parts})"
        raise _too_long(max_model_len, had, f"the length of the {prompt_param} or '{param}' (at most {left})", param)
    return max_tokens


def refuse_large_request(
    prompts: Sequence[Prompt], n: int, max_request_tokens: int, *, shows_prompts: bool = False
) -> None:
    """Refuses requests for more tokens than one may ask for: of prompts, and of all choices.

    Args:
        n: choices of each prompt.
        shows_prompts: each choice repeats its prompt.

    Raises:
        InvalidRequestError: naming what to lower.
    """
    num_prompt_tokens = sum(len(prompt.ids) for prompt in prompts) * (n if shows_prompts else 1)
    num_tokens = num_prompt_tokens + n * sum(prompt.sampling.max_tokens for prompt in prompts)
    if num_tokens > max_request_tokens:
        most = max(prompt.sampling.max_tokens for prompt in prompts)
        raise InvalidRequestError(
            f"This asks for {num_tokens} tokens: {num_prompt_tokens} of prompts, and {n * len(prompts)} choices of up"
            f" to {most}. A request may ask for {max_request_tokens}; lower 'n' or 'max_tokens', or send several"
            " requests.",
            param="n" if n > 1 else "max_tokens" if most > num_prompt_tokens else "prompt",
        )


def refuse_large_reply(prompts: Sequence[Prompt], n: int, max_model_len: int) -> None:
    """Refuses replies with more log-probabilities than are put into one JSON text.

    Args:
        n: choices of each prompt.
        max_model_len: the most tokens of prompt and reply together; one choice may report all that fits.

    Raises:
        InvalidRequestError: naming what to lower.
    """
    num_logprobs = n * sum(_num_logprobs(prompt.ids, prompt.sampling) for prompt in prompts)
    limit = max(MAX_REPLY_LOGPROBS, max_model_len * (MAX_ALTERNATIVES + 1))
    if num_logprobs > limit:
        raise InvalidRequestError(
            f"This asks for up to {num_logprobs} log-probabilities in one reply, which may have {limit}; lower the"
            " number of alternatives, 'n' or 'max_tokens', send several requests, or stream the reply.",
            param="logprobs",
        )


def _num_logprobs(ids: Sequence[int], sampling: SamplingParams) -> int:
    of_reply, of_prompt = sampling.num_logprobs, sampling.num_prompt_logprobs
    return (0 if of_reply is None else sampling.max_tokens * (of_reply + 1)) + (
        0 if of_prompt is None else len(ids) * (of_prompt + 1)
    )
