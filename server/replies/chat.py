"""Chat completions as OpenAI writes them: chunks made from deltas, and the unstreamed reply folded from those chunks.

Objects are plain dicts built by hand: thousands of them are made a second.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

from model.contract.tokenizer import Tokenizer
from prompts.reply_events import CallArguments, CallStart, Content
from server.conversion.generation_request import GenerationRequest
from server.replies.chunk_reply import ChunkReply, JsonDict
from server.replies.logprobs import prompt_logprobs, text_logprobs
from server.replies.output_processor import TOOL_CALLS, ChoiceDelta
from server.replies.token_text import TokenEntry
from server.wire.json_list import JsonList


class ChatReply(ChunkReply):
    """The reply to one chat request.

    Args:
        request: it answers.
        model: the name the request asked for.
        tokenizer: names tokens in log-probabilities.
        is_legacy: write a call as `function_call`, not `tool_calls`.
        speaks_functions: the client is of the age of `function_call`, whether or not this request has functions.
        options: of `ChunkReply`.
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
        self._choices = [self._new_choice(index) for index in range(request.num_choices)]
        self._contents: list[list[str]] = [[] for _ in self._choices]
        self._logprobs_of = [JsonList() for _ in self._choices]
        self._of_the_prompt: JsonDict = {}

    def chunks(self, delta: ChoiceDelta) -> Iterator[JsonDict]:
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
            pieces = [{"content": ""}]  # nothing to show yet, but something to tell of the tokens
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

    def _pieces(self, delta: ChoiceDelta) -> list[JsonDict]:
        """The `delta` objects of what is new: content, and calls in OpenAI's form."""
        if delta.events is None:
            return [{"content": delta.text}] if delta.text else []
        pieces: list[JsonDict] = []
        for event in delta.events:
            match event:
                case Content(text):
                    if pieces and "content" in pieces[-1]:
                        pieces[-1]["content"] += text
                    else:
                        pieces.append({"content": text})
                case CallStart(name):
                    self._calls_custom[delta.index] = name in self._request.custom_tools
                    pieces.append(self._call(delta.index, name, ""))
                case CallArguments(text):
                    pieces.append(self._call(delta.index, None, text))
        return pieces

    def _call(self, index: int, name: str | None, text: str) -> JsonDict:
        """A piece of the call of a choice: its beginning, where there is a name, or more of its arguments."""
        kind, key = ("custom", "input") if self._calls_custom[index] else ("function", "arguments")
        called = {key: text} if name is None else {"name": name, key: text}
        if self._is_legacy:
            return {"function_call": called}
        head = {} if name is None else {"id": f"call_{uuid.uuid4().hex[:24]}", "type": kind}
        return {"tool_calls": [{"index": 0, **head, kind: called}]}

    def _finish_reason(self, reason: str) -> str:
        return "function_call" if reason == TOOL_CALLS and self._is_legacy else reason

    def _text_chunk(self, index: int, text: str) -> JsonDict:
        return self._chunk(index, {"content": text})

    def _chunk(self, index: int, delta: JsonDict, finish_reason: str | None = None) -> JsonDict:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head, "choices": [choice]}

    def _logprobs(self, entries: list[TokenEntry]) -> JsonDict:
        request = self._request
        num_top = request.num_logprobs or 0
        as_ids = request.return_tokens_as_token_ids
        content = text_logprobs(entries, num_top, self._tokenizer, return_tokens_as_token_ids=as_ids)
        return {"content": content, "refusal": None}

    def add_chunk(self, chunk: JsonDict) -> None:
        """Takes the next chunk of the stream into the reply that is not streamed."""
        for key in ("prompt_token_ids", "prompt_logprobs"):
            if key in chunk:
                self._of_the_prompt[key] = chunk[key]
        piece = chunk["choices"][0]
        choice = self._choices[piece["index"]]
        delta = piece["delta"]
        self._contents[piece["index"]].append(delta.get("content", ""))
        _add_call(choice["message"], delta)
        if piece["logprobs"] is not None:
            self._logprobs_of[piece["index"]].extend(piece["logprobs"]["content"])
        if "token_ids" in piece:
            choice["token_ids"] += piece["token_ids"]
        if piece["finish_reason"] is not None:
            choice["finish_reason"] = piece["finish_reason"]
            choice["stop_reason"] = piece["stop_reason"]

    def result(self, usage: JsonDict) -> JsonDict:
        """Returns the reply that is not streamed, once all chunks were added."""
        for choice, content, logprobs in zip(self._choices, self._contents, self._logprobs_of, strict=True):
            if choice["logprobs"] is not None:
                choice["logprobs"]["content"] = logprobs.whole()
            message = choice["message"]
            text = "".join(content)
            if self._speaks_functions:
                # Clients of that age look for both without asking whether they are there.
                message.setdefault("function_call", None)
                message["content"] = text
            else:
                message["content"] = text or (None if "tool_calls" in message else "")
        whole = {"object": "chat.completion", "choices": self._choices, "usage": usage}
        return {**self._head, **whole, **self._of_the_prompt}

    def _new_choice(self, index: int) -> JsonDict:
        choice: JsonDict = {
            "index": index,
            "message": {"role": "assistant", "content": "", "refusal": None},
            "logprobs": None if self._request.num_logprobs is None else {"content": None, "refusal": None},
            "finish_reason": None,
            "stop_reason": None,
        }
        if self._request.return_token_ids:
            choice["token_ids"] = []
        return choice


def _add_call(message: JsonDict, delta: JsonDict) -> None:
    """Adds a piece of a call to the folded message; these models make one call a turn, so it belongs to that one."""
    if "function_call" in delta:
        piece = delta["function_call"]
        called = message.setdefault("function_call", dict.fromkeys(piece, ""))
    elif "tool_calls" in delta:
        (call,) = delta["tool_calls"]
        if "id" in call:
            kind = call["type"]
            message["tool_calls"] = [{"id": call["id"], "type": kind, kind: dict.fromkeys(call[kind], "")}]
        kind = message["tool_calls"][0]["type"]
        called, piece = message["tool_calls"][0][kind], call[kind]
    else:
        return
    for key, text in piece.items():
        called[key] += text
