"""Legacy completions as OpenAI writes them: chunks made from deltas, and the unstreamed reply folded from them."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from model.contract.messages import TokenLogprob
from model.contract.tokenizer import Tokenizer
from server.conversion.generation_request import GenerationRequest
from server.replies.chunk_reply import ChunkReply
from server.replies.logprobs import prompt_logprobs
from server.replies.output_processor import ChoiceDelta
from server.replies.token_text import TokenEntry
from server.wire.json_list import JsonList
from server.wire.shapes.completions import Completion, CompletionChoice, CompletionLogprobs
from server.wire.shapes.fields import JsonObject
from server.wire.shapes.generation import Usage

_Utf8 = codecs.getincrementaldecoder("utf-8")  # a character may come in several tokens


@dataclass(slots=True)
class _Folded:
    """One choice, folded from its chunks so far."""

    texts: list[str] = field(default_factory=list)
    logprobs: dict[str, JsonList] = field(default_factory=lambda: {key: JsonList() for key in _new_logprobs()})
    token_ids: list[int] = field(default_factory=list)
    of_the_prompt: Any = field(default_factory=dict)
    finish_reason: Any = None
    stop_reason: str | int | None = None


class CompletionReply(ChunkReply):
    """The reply to one completion request; takes what `ChunkReply` takes."""

    _id_prefix = "cmpl"
    _chunk_object = "text_completion"

    def __init__(self, request: GenerationRequest, model: str, tokenizer: Tokenizer, **options: bool) -> None:
        super().__init__(request, model, tokenizer, **options)
        self._num_chars = [0] * request.num_choices
        self._utf8 = [_Utf8(errors="replace") for _ in range(request.num_choices)]
        self._choices = [_Folded() for _ in range(request.num_choices)]

    def chunks(self, delta: ChoiceDelta) -> Iterator[JsonObject]:
        """Yields the chunk of one delta, if there is anything to tell."""
        request, index = self._request, delta.index
        first = not self._begun[index]
        self._begun[index] = True
        text = delta.text
        logprobs = _new_logprobs() if request.num_logprobs is not None else None
        if first and request.echo_texts:
            text = request.echo_texts[index // request.n] + text
            if logprobs is not None:
                self._add_prompt(logprobs, index, delta.prompt_logprobs or [])
                self._num_chars[index] = len(text) - len(delta.text)
        if logprobs is not None:
            self._add_tokens(logprobs, index, delta.logprobs or [])
        show_ids = request.return_token_ids
        tells_scores = bool(logprobs and logprobs["tokens"]) or (first and request.num_prompt_logprobs is not None)
        if not (text or delta.finish_reason or (show_ids and delta.token_ids) or tells_scores):
            self._begun[index] = not first
            return
        chunk = self._text_chunk(index, text)
        choice = chunk["choices"][0]
        choice |= {"logprobs": logprobs, "finish_reason": delta.finish_reason, "stop_reason": delta.stop_reason}
        if show_ids:
            choice["token_ids"] = delta.token_ids
            if first:
                choice["prompt_token_ids"] = request.prompt_of(index).ids
        if first and request.num_prompt_logprobs is not None:
            ids, scores = request.prompt_of(index).ids, delta.prompt_logprobs or []
            choice["prompt_logprobs"] = prompt_logprobs(ids, scores, request.num_prompt_logprobs, self._tokenizer)
        yield chunk

    def _text_chunk(self, index: int, text: str) -> JsonObject:
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": None, "stop_reason": None}
        return {**self._head, "choices": [choice]}

    def _add_prompt(self, logprobs: CompletionLogprobs, index: int, scores: list[TokenLogprob]) -> None:
        """Reports the prompt's tokens; nothing comes before the first, so it has no log-probability."""
        ids = self._request.prompt_of(index).ids
        offset, utf8 = 0, _Utf8(errors="replace")
        for position, token_id in enumerate(ids):
            name = self._name(token_id)
            logprobs["tokens"].append(name)
            logprobs["text_offset"].append(offset)
            shown = self._tokenizer.token_bytes(token_id) or self._tokenizer.token_name(token_id).encode()
            offset += len(utf8.decode(shown))
            score = scores[position - 1] if 0 < position <= len(scores) else None
            logprobs["token_logprobs"].append(None if score is None else score.logprob)
            logprobs["top_logprobs"].append(None if score is None else self._top(token_id, score))

    def _add_tokens(self, logprobs: CompletionLogprobs, index: int, entries: list[TokenEntry]) -> None:
        for token_id, shown, score in entries:
            is_whole = shown is None or shown == self._tokenizer.token_bytes(token_id)
            whole = is_whole or self._request.return_tokens_as_token_ids
            logprobs["tokens"].append(self._name(token_id) if whole else _text_or_bytes(shown or b""))
            logprobs["text_offset"].append(self._num_chars[index])
            logprobs["token_logprobs"].append(score.logprob)
            logprobs["top_logprobs"].append(self._top(token_id, score))
            self._num_chars[index] += len(self._utf8[index].decode(shown or b""))

    def _top(self, token_id: int, score: TokenLogprob) -> dict[str, float]:
        """Returns the most likely tokens, and the token itself if it is not among them."""
        count = self._request.num_logprobs or 0
        top = dict(zip(map(self._name, score.top_ids[:count]), score.top_logprobs[:count], strict=True))
        top.setdefault(self._name(token_id), score.logprob)
        return top

    def _name(self, token_id: int) -> str:
        """Returns a token's text, or else a name that no other token shares: these names are keys."""
        if self._request.return_tokens_as_token_ids:
            return f"token_id:{token_id}"
        token_bytes = self._tokenizer.token_bytes(token_id)
        if token_bytes:
            return _text_or_bytes(token_bytes)
        return self._tokenizer.token_name(token_id) or f"token_id:{token_id}"

    def add_chunk(self, chunk: JsonObject) -> None:
        """Adds the next chunk of the stream to the reply that is not streamed."""
        piece = chunk["choices"][0]
        choice = self._choices[piece["index"]]
        choice.texts.append(piece["text"])
        for key, values in (piece["logprobs"] or {}).items():
            choice.logprobs[key].extend(values)
        choice.token_ids += piece.get("token_ids", ())
        choice.of_the_prompt |= {key: piece[key] for key in ("prompt_token_ids", "prompt_logprobs") if key in piece}
        choice.finish_reason = piece["finish_reason"]
        choice.stop_reason = piece["stop_reason"]

    def result(self, usage: Usage) -> Completion:
        """Returns the reply that is not streamed, once all chunks were added."""
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": [self._choice(index, choice) for index, choice in enumerate(self._choices)],
            "usage": usage,
        }

    def _choice(self, index: int, folded: _Folded) -> CompletionChoice:
        logprobs: Any = {key: values.whole() for key, values in folded.logprobs.items()}
        choice: CompletionChoice = {
            "index": index,
            "text": "".join(folded.texts),
            "logprobs": None if self._request.num_logprobs is None else logprobs,
            "finish_reason": folded.finish_reason,
            "stop_reason": folded.stop_reason,
        }
        if self._request.return_token_ids:
            choice["token_ids"] = folded.token_ids
        choice |= folded.of_the_prompt
        return choice


def _new_logprobs() -> CompletionLogprobs:
    return {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}


def _text_or_bytes(token_bytes: bytes) -> str:
    try:
        return token_bytes.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token_bytes)
