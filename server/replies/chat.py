"""Chat completions as OpenAI writes them: chunks made from deltas, and the unstreamed reply folded from those chunks.

Objects are plain dicts built by hand: thousands of them are made a second.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from model.contract.tokenizer import Tokenizer
from prompts.reply_events import CallArguments, CallStart, Content
from server.conversion.generation_request import GenerationRequest
from server.replies.chunk_reply import ChunkReply
from server.replies.logprobs import prompt_logprobs, text_logprobs
from server.replies.output_processor import TOOL_CALLS, ChoiceDelta
from server.replies.token_text import TokenEntry
from server.wire.json_list import JsonList
from server.wire.shapes.chat import AssistantMessage, ChatChoice, ChatCompletion, ChatLogprobs
from server.wire.shapes.fields import JsonObject
from server.wire.shapes.generation import Usage


@dataclass(slots=True)
class _Folded:
    """One choice, folded from its chunks so far; `calls` holds the message's `tool_calls` or `function_call`."""

    texts: list[str] = field(default_factory=list)
    calls: Any = field(default_factory=dict)
    logprobs: JsonList = field(default_factory=JsonList)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: Any = None
    stop_reason: str | int | None = None


class ChatReply(ChunkReply):
    """The reply to one chat request.

    Args:
        model: the name the request asked for.
        tokenizer: names tokens in log-probabilities.
        is_legacy: write a call as `function_call`, not `tool_calls`.
        speaks_functions: the client knows `function_call`, whether or not this request has functions.
        options: passed to `ChunkReply`.
    """

    _id_prefix = "chatcmpl"
    _chunk_object = "chat.completion.chunk"

    def __init__(
        self,
        request: GenerationRequest,
        model: str,
        tokenizer: Tokenizer,
        *,
        is_legacy: bool = False,
        speaks_functions: bool = False,
        **options: bool,
    ) -> None:
        super().__init__(request, model, tokenizer, **options)
        self._is_legacy = is_legacy
        self._speaks_functions = speaks_functions
        self._calls_custom = [False] * request.num_choices
        self._choices = [_Folded() for _ in range(request.num_choices)]
        self._of_the_prompt: Any = {}

    def chunks(self, delta: ChoiceDelta) -> Iterator[JsonObject]:
        """Yields the chunks of one delta: who speaks (once), content, and how it ended."""
        index = delta.index
        if not self._begun[index]:
            self._begun[index] = True
            chunk = self._chunk(index, {"role": "assistant", "content": ""})
            if self._request.return_token_ids:
                chunk["prompt_token_ids"] = self._request.prompt_of(index).ids
            num_top = self._request.num_prompt_logprobs
            if num_top is not None and index == 0:
                ids, scores = self._request.prompts[0].ids, delta.prompt_logprobs or []
                chunk["prompt_logprobs"] = prompt_logprobs(ids, scores, num_top, self._tokenizer)
            yield chunk
        token_ids = delta.token_ids if self._request.return_token_ids else []
        pieces = self._pieces(delta)
        if not pieces and (delta.logprobs or (token_ids and delta.finish_reason is None)):
            pieces = [{"content": ""}]  # no text yet, but ids or log-probabilities
        logprobs = delta.logprobs
        for piece in pieces:
            chunk = self._chunk(index, piece)
            if logprobs:
                chunk["choices"][0]["logprobs"] = self._logprobs(logprobs)
                logprobs = None
            if self._request.return_token_ids:
                chunk["choices"][0]["token_ids"] = token_ids
                token_ids = []
            yield chunk
        if delta.finish_reason is not None:
            chunk = self._chunk(index, {}, self._finish_reason(delta.finish_reason))
            chunk["choices"][0]["stop_reason"] = delta.stop_reason
            if token_ids:
                chunk["choices"][0]["token_ids"] = token_ids
            yield chunk

    def _pieces(self, delta: ChoiceDelta) -> list[JsonObject]:
        """Returns the `delta` objects of new content and calls, in OpenAI's form."""
        pieces: list[JsonObject] = []
        for event in delta.as_events():
            match event:
                case Content(text) if pieces and "content" in pieces[-1]:
                    pieces[-1]["content"] += text
                case Content(text) if text:
                    pieces.append({"content": text})
                case CallStart(name):
                    self._calls_custom[delta.index] = name in self._request.custom_tools
                    pieces.append(self._call(delta.index, name, ""))
                case CallArguments(text):
                    pieces.append(self._call(delta.index, None, text))
        return pieces

    def _call(self, index: int, name: str | None, text: str) -> JsonObject:
        """Returns a piece of a choice's call: its beginning, if there is a name, or more of its arguments."""
        kind, key = ("custom", "input") if self._calls_custom[index] else ("function", "arguments")
        called = {key: text} if name is None else {"name": name, key: text}
        if self._is_legacy:
            return {"function_call": called}
        head = {} if name is None else {"id": f"call_{uuid.uuid4().hex[:24]}", "type": kind}
        return {"tool_calls": [{"index": 0, **head, kind: called}]}

    def _finish_reason(self, reason: str) -> str:
        return "function_call" if reason == TOOL_CALLS and self._is_legacy else reason

    def _text_chunk(self, index: int, text: str) -> JsonObject:
        return self._chunk(index, {"content": text})

    def _chunk(self, index: int, delta: JsonObject, finish_reason: str | None = None) -> JsonObject:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head, "choices": [choice]}

    def _logprobs(self, entries: list[TokenEntry]) -> ChatLogprobs:
        request = self._request
        num_top = request.num_logprobs or 0
        as_ids = request.return_tokens_as_token_ids
        content = text_logprobs(entries, num_top, self._tokenizer, return_tokens_as_token_ids=as_ids)
        return {"content": content, "refusal": None}

    def add_chunk(self, chunk: JsonObject) -> None:
        """Adds the next chunk of the stream to the reply that is not streamed."""
        self._of_the_prompt |= {key: chunk[key] for key in ("prompt_token_ids", "prompt_logprobs") if key in chunk}
        piece = chunk["choices"][0]
        choice = self._choices[piece["index"]]
        choice.texts.append(piece["delta"].get("content", ""))
        _add_call(choice.calls, piece["delta"])
        if piece["logprobs"] is not None:
            choice.logprobs.extend(piece["logprobs"]["content"])
        choice.token_ids += piece.get("token_ids", ())
        choice.finish_reason = piece["finish_reason"]
        choice.stop_reason = piece.get("stop_reason")

    def result(self, usage: Usage) -> ChatCompletion:
        """Returns the reply that is not streamed, once all chunks were added."""
        reply: ChatCompletion = {
            "id": self.id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": [self._choice(index, choice) for index, choice in enumerate(self._choices)],
            "usage": usage,
        }
        reply |= self._of_the_prompt
        return reply

    def _choice(self, index: int, folded: _Folded) -> ChatChoice:
        text = "".join(folded.texts)
        message: AssistantMessage = {"role": "assistant", "content": text, "refusal": None} | folded.calls
        if self._speaks_functions:
            # Such clients read both without asking whether they are there.
            message.setdefault("function_call", None)
        elif not text and "tool_calls" in message:
            message["content"] = None
        has_logprobs = self._request.num_logprobs is not None
        choice: ChatChoice = {
            "index": index,
            "message": message,
            "logprobs": {"content": folded.logprobs.whole(), "refusal": None} if has_logprobs else None,
            "finish_reason": folded.finish_reason,
            "stop_reason": folded.stop_reason,
        }
        if self._request.return_token_ids:
            choice["token_ids"] = folded.token_ids
        return choice


def _add_call(calls: JsonObject, delta: JsonObject) -> None:
    """Adds a piece of a call to what was folded; these models make one call a turn, so it belongs to that one."""
    if "function_call" in delta:
        piece = delta["function_call"]
        called = calls.setdefault("function_call", dict.fromkeys(piece, ""))
    elif "tool_calls" in delta:
        (call,) = delta["tool_calls"]
        if "id" in call:
            kind = call["type"]
            calls["tool_calls"] = [{"id": call["id"], "type": kind, kind: dict.fromkeys(call[kind], "")}]
        kind = calls["tool_calls"][0]["type"]
        called, piece = calls["tool_calls"][0][kind], call[kind]
    else:
        return
    for key, text in piece.items():
        called[key] += text
