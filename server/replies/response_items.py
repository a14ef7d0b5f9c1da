"""The output items of a response while they are written: a message, a call of a function or of a custom tool.

Each makes its own events. Their ids follow from the response's and their place, so that a response that is generated
again says the same to the letter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from server.wire.shapes.fields import JsonObject
from server.wire.shapes.responses import OutputItem, OutputText, ResponseLogprob

Status = Literal["in_progress", "completed", "incomplete"]

_PREFIXES = {"message": "msg", "function_call": "fc", "custom_tool_call": "ctc"}


def item_id(kind: str, hex: str, number: int) -> str:
    """Returns the id of an item.

    Args:
        kind: its type.
        hex: the digits in the id of the response or conversation it belongs to.
        number: its place among all items there.
    """
    return f"{_PREFIXES.get(kind, 'item')}_{hex}{number:04x}"


class MessageItem:
    """A text.

    Args:
        index: its place among the output items.
    """

    def __init__(self, id: str, index: int) -> None:
        self._id = id
        self._index = index
        self._place = {"item_id": id, "output_index": index, "content_index": 0}
        self._texts: list[str] = []
        self._logprobs: list[ResponseLogprob] = []

    def begin(self) -> Iterator[JsonObject]:
        """Yields the events before its first piece."""
        item = {**self.whole("in_progress"), "content": []}
        yield {"type": "response.output_item.added", "output_index": self._index, "item": item}
        yield {"type": "response.content_part.added", **self._place, "part": self._part()}

    def push(self, text: str, logprobs: Sequence[ResponseLogprob]) -> JsonObject:
        """Takes a piece; returns its event."""
        self._texts.append(text)
        self._logprobs += logprobs
        return {"type": "response.output_text.delta", **self._place, "delta": text, "logprobs": list(logprobs)}

    def end(self, status: Status) -> Iterator[JsonObject]:
        """Yields the events after its last piece."""
        part = self._part()
        yield {"type": "response.output_text.done", **self._place, "text": part["text"], "logprobs": self._logprobs}
        yield {"type": "response.content_part.done", **self._place, "part": part}
        yield {"type": "response.output_item.done", "output_index": self._index, "item": self.whole(status)}

    def whole(self, status: Status) -> OutputItem:
        """Returns the item as it is now."""
        return {"id": self._id, "type": "message", "status": status, "role": "assistant", "content": [self._part()]}

    def _part(self) -> OutputText:
        text = "".join(self._texts)
        return {"type": "output_text", "annotations": [], "text": text, "logprobs": list(self._logprobs)}


class CallItem:
    """A call.

    Args:
        call_id: pairs it with its result.
        index: its place among the output items.
        name: the tool's name in its namespace.
        namespace: the tool's namespace; empty without one.
        is_custom: it calls a custom tool.
    """

    def __init__(
        self, id: str, call_id: str, index: int, name: str, *, namespace: str = "", is_custom: bool = False
    ) -> None:
        self._id, self._call_id, self._name = id, call_id, name
        self._index = index
        self._place = {"item_id": id, "output_index": index}
        self._namespace = namespace
        self._is_custom = is_custom
        self._event = f"response.{'custom_tool_call_input' if is_custom else 'function_call_arguments'}"
        self._texts: list[str] = []

    def begin(self) -> Iterator[JsonObject]:
        """Yields the events before its first piece."""
        item = self.whole("in_progress")
        yield {"type": "response.output_item.added", "output_index": self._index, "item": item}

    def push(self, text: str) -> JsonObject:
        """Takes a piece of its input; returns its event."""
        self._texts.append(text)
        return {"type": f"{self._event}.delta", **self._place, "delta": text}

    def end(self, status: Status) -> Iterator[JsonObject]:
        """Yields the events after its last piece."""
        text = "".join(self._texts)
        told = {"input": text} if self._is_custom else {"arguments": text, "name": self._name}
        yield {"type": f"{self._event}.done", **self._place, **told}
        yield {"type": "response.output_item.done", "output_index": self._index, "item": self.whole(status)}

    def whole(self, status: Status) -> OutputItem:
        """Returns the item as it is now."""
        item: OutputItem = {
            "id": self._id,
            "type": "custom_tool_call" if self._is_custom else "function_call",
            "status": status,
            "call_id": self._call_id,
            "name": self._name,
        }
        if self._namespace:
            item["namespace"] = self._namespace
        item["input" if self._is_custom else "arguments"] = "".join(self._texts)
        return item
