"""Reads chat requests: from OpenAI's wire types to a neutral request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from model.contract.errors import InvalidRequestError
from prompts.call_results import OpenCalls
from prompts.messages import FunctionCall, Message, Role
from server.conversion.neutral_request import ChatRequest, ReplyOptions
from server.conversion.readers.formats import read_answer_format
from server.conversion.readers.unsupported import refuse_unserved
from server.conversion.tools import read_function_calling
from server.wire.shapes.chat import ChatCompletionRequest, ChatMessage, ContentPart, PredictionField
from server.wire.shapes.generation import SamplingFields
from server.wire.shapes.responses import ResponsesRequest
from server.wire.shapes.tokens import TokenizeRequest

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


def read_chat(request: ChatCompletionRequest) -> ChatRequest:
    """Reads a chat request.

    Raises:
        InvalidRequestError: it cannot be served as asked.
    """
    refuse_unserved(request)
    refuse_contradictions(request)
    _refuse_impossible(request)
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequestError("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    newer_name = request.max_completion_tokens is not None
    options = ReplyOptions.from_fields(
        request,
        max_tokens=request.max_completion_tokens if newer_name else request.max_tokens,
        max_tokens_param="max_completion_tokens" if newer_name else "max_tokens",
        num_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        answer=read_answer_format(request, request.response_format),
    )
    return ChatRequest(
        messages=_read_messages(request.messages, must_be_answered=True),
        calling=read_function_calling(request.tools, request.tool_choice, request.functions, request.function_call),
        options=options,
        continue_final=request.continue_final_message,
        truncation=request.truncation,
        max_length=request.max_length,
        prediction=_read_prediction(request.prediction),
    )


def _refuse_impossible(request: ChatCompletionRequest) -> None:
    if request.audio is not None or any(modality != "text" for modality in request.modalities or ()):
        param = "audio" if request.audio is not None else "modalities"
        raise InvalidRequestError("These models write text only; leave out audio and modalities.", param=param)
    is_continued = request.messages[-1].role == "assistant" and request.continue_final_message is not False
    if request.add_generation_prompt is False and not is_continued:
        raise InvalidRequestError(
            "'add_generation_prompt': false leaves no turn to write in; it goes with a last message of the"
            " assistant that is continued.",
            param="add_generation_prompt",
        )
    if request.web_search_options is not None:
        raise InvalidRequestError("This server cannot search the web.", param="web_search_options")


def read_tokenize_chat(request: TokenizeRequest) -> ChatRequest:
    """Reads the conversation of a request to tokenize one.

    Raises:
        InvalidRequestError: it cannot be rendered.
    """
    # A last message that is continued leaves its turn open, whether or not a new one would be.
    open_turn = request.add_generation_prompt is not False or request.continue_final_message is True
    return ChatRequest(
        messages=_read_messages(request.messages or (), must_be_answered=open_turn),
        calling=read_function_calling(request.tools, request.tool_choice, request.functions, request.function_call),
        continue_final=request.continue_final_message,
        open_turn=open_turn,
    )


def refuse_contradictions(request: SamplingFields) -> None:
    """Refuses options that need others.

    Raises:
        InvalidRequestError: naming the option.
    """
    refuse_stream_options(request)
    if request.prompt_logprobs is not None and request.stream:
        raise InvalidRequestError("'prompt_logprobs' is not reported in streams.", param="prompt_logprobs")


def refuse_stream_options(request: SamplingFields | ResponsesRequest) -> None:
    """Refuses stream options without a stream."""
    if request.stream_options is not None and not request.stream:
        raise InvalidRequestError("'stream_options' needs 'stream': true.", param="stream_options")


def speaks_functions(request: ChatCompletionRequest) -> bool:
    """Tells whether the client uses the older form of tools, `functions` and `function_call`."""
    return bool(request.functions) or any(
        message.role == "function" or message.function_call is not None for message in request.messages
    )


def _read_messages(sent: Sequence[ChatMessage], *, must_be_answered: bool) -> list[Message]:
    """Reads messages; each result is matched with the call it answers.

    A tool message that names no call by `tool_call_id` may do so by `id`, or be the result of the one call that waits.

    Args:
        must_be_answered: refuse a conversation that ends with calls: nothing can be generated for it.

    Raises:
        InvalidRequestError: naming the message.
    """
    calls = OpenCalls()
    messages = []
    for index, wire in enumerate(sent):
        message = read_message(wire, index)
        if wire.role == "tool":  # "function" becomes the same role, but has no id
            message = replace(message, tool_call_id=_answered_id(wire, calls, f"messages[{index}]"))
        calls.push(message)
        messages.append(message)
    if must_be_answered and messages and messages[-1].calls:
        raise InvalidRequestError(
            "The last message makes calls that no message answers; append a message with each result.",
            param=f"messages[{len(messages) - 1}]",
        )
    return messages


def read_message(message: ChatMessage, index: int) -> Message:
    """Reads one message of a request.

    Raises:
        InvalidRequestError: content that is missing or is not text.
    """
    where = f"messages[{index}]"
    content = message.content
    if content is None:
        if message.role != "assistant" or not (message.tool_calls or message.function_call):
            raise InvalidRequestError(
                f"'{where}.content' is missing: the {message.role} message needs a text or a list of text parts.",
                param=f"{where}.content",
            )
        content = ""
    calls = _read_calls(message, index)
    text = content if isinstance(content, str) else "\n".join(part_texts(content, f"{where}.content"))
    return Message(_ROLES[message.role], text, name=message.name, calls=calls, tool_call_id=message.tool_call_id)


def _read_prediction(prediction: PredictionField | None) -> str:
    content = "" if prediction is None else prediction.content
    return content if isinstance(content, str) else "\n".join(part_texts(content, "prediction.content"))


def part_texts(parts: Sequence[ContentPart], where: str, kind: str = "text") -> Iterator[str]:
    """Yields the texts of a message's parts.

    Args:
        where: the field that holds them.
        kind: the type that parts with text have in this API.

    Raises:
        InvalidRequestError: a part holds something else.
    """
    for number, part in enumerate(parts):
        text = part.readable_text()
        if text is None:
            raise InvalidRequestError(
                f"'{where}[{number}]' of type {part.type[:40]!r} cannot be read: these models read text only; send"
                f' parts of the form {{"type": "{kind}", "text": "..."}}.',
                param=f"{where}[{number}]",
            )
        yield text


def _read_calls(message: ChatMessage, index: int) -> tuple[FunctionCall, ...]:
    """Reads the calls that an assistant's message makes.

    Raises:
        InvalidRequestError: calls in a message of another role, or one without an id.
    """
    where = f"messages[{index}]"
    if not (message.tool_calls or message.function_call):
        return ()
    if message.role != "assistant":
        raise InvalidRequestError(f"Only an assistant's message makes calls, not '{where}'.", param=where)
    if message.function_call is not None:
        call = message.function_call
        return (FunctionCall(call.name, call.arguments or "{}"),)
    calls = []
    for number, tool_call in enumerate(message.tool_calls or ()):
        if tool_call.id is None:
            param = f"{where}.tool_calls[{number}].id"
            raise InvalidRequestError(f"'{param}' is missing: results refer to it.", param=param)
        if tool_call.custom is not None:
            calls.append(FunctionCall(tool_call.custom.name, tool_call.custom.input or "", tool_call.id, is_text=True))
        elif tool_call.function is not None:
            calls.append(FunctionCall(tool_call.function.name, tool_call.function.arguments or "{}", tool_call.id))
    return tuple(calls)


def _answered_id(message: ChatMessage, calls: OpenCalls, where: str) -> str | None:
    """Returns the id of the call that a tool message answers; None means the only call that waits for a result."""
    if message.tool_call_id is not None and calls.knows(message.tool_call_id):
        return message.tool_call_id
    if message.tool_call_id:
        raise InvalidRequestError(
            f"'{where}.tool_call_id' {message.tool_call_id[:100]!r} is of no earlier tool call.", param=where
        )
    if message.id is not None and calls.knows(message.id):
        return message.id
    if calls.num_waiting != 1:
        reason = "no call waits for one" if not calls.num_waiting else f"{calls.num_waiting} calls wait for one"
        raise InvalidRequestError(
            f"'{where}.tool_call_id' is missing: whose result is this? Since the last user message {reason}.",
            param=where,
        )
    return None
