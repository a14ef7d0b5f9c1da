"""Reads legacy completion requests: from OpenAI's wire types to a neutral request."""

from __future__ import annotations

from collections.abc import Sequence

from model.contract.errors import InvalidRequestError
from server.conversion.neutral_request import ReplyOptions, TextRequest
from server.conversion.readers.chat import refuse_contradictions
from server.conversion.readers.formats import read_answer_format
from server.conversion.readers.unsupported import refuse_unserved
from server.wire.shapes.completions import CompletionRequest


def read_completion(request: CompletionRequest) -> TextRequest:
    """Reads a completion request.

    Raises:
        InvalidRequestError: it cannot be served as asked.
    """
    refuse_unserved(request)
    refuse_contradictions(request)
    if request.suffix:
        raise InvalidRequestError("'suffix' is not supported: these models only continue a text.", param="suffix")
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise InvalidRequestError("'best_of' is supported only where it equals 'n'.", param="best_of")
    return TextRequest(
        prompts=_prompts(request),
        options=ReplyOptions.from_fields(
            request, num_logprobs=request.logprobs, answer=read_answer_format(request, request.response_format)
        ),
        echo=bool(request.echo),
        allowed_special=request.allowed_special,
        add_special_tokens=bool(request.add_special_tokens),
    )


def _prompts(request: CompletionRequest) -> Sequence[str] | Sequence[Sequence[int]]:
    prompt: Sequence[str] | Sequence[Sequence[int]] | Sequence[int] | str | None = request.prompt
    if prompt is None or isinstance(prompt, str):
        return [prompt or ""]
    return [prompt] if isinstance(prompt[0], int) else prompt  # type: ignore[return-value]
