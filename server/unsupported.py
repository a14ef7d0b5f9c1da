"""What the wire has but this server does not do yet, refused by name so that nothing is silently ignored.

Whoever implements one of these removes its line here.
"""

from __future__ import annotations

from model.errors import InvalidRequestError
from server.protocol import ChatCompletionRequest, SamplingFields, TokenizeRequest

_NOT_YET = ("tools", "functions", "tool_choice", "function_call", "structured_outputs", "truncation")


def refuse_unsupported(request: SamplingFields | TokenizeRequest) -> None:
    """Refuses what would otherwise be ignored.

    Raises:
        InvalidRequestError: naming the field.
    """
    for name in _NOT_YET:
        if _asks_for(name, getattr(request, name, None)):
            raise InvalidRequestError(f"'{name}' is not supported yet; leave it out.", param=name)
    if isinstance(request, ChatCompletionRequest):
        _refuse_chat_demands(request)


def _asks_for(name: str, value: object) -> bool:
    if name in ("tool_choice", "function_call"):
        return value not in (None, "none", "auto")
    return value not in (None, [], {}) and not (name == "truncation" and value == "disabled")


def _refuse_chat_demands(request: ChatCompletionRequest) -> None:
    if request.response_format is not None and request.response_format.get("type") != "text":
        raise InvalidRequestError(
            'Only \'response_format\' {"type": "text"} is supported yet; leave it out.', param="response_format"
        )
    if request.audio is not None or any(modality != "text" for modality in request.modalities or ()):
        param = "audio" if request.audio is not None else "modalities"
        raise InvalidRequestError("These models write text only; leave out audio and modalities.", param=param)
    if request.web_search_options is not None:
        raise InvalidRequestError("This server cannot search the web.", param="web_search_options")
    for index, message in enumerate(request.messages):
        if message.role in ("tool", "function") or message.tool_calls or message.function_call:
            raise InvalidRequestError("Function calling is not supported yet.", param=f"messages[{index}]")
