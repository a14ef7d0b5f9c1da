"""The output items of a response while they are written: a message, a call of a function or of a custom tool.

Each makes its own events. Their ids follow from the response's and their place, so that a response that is generated
again says the same to the letter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

JsonDict = dict[str, Any]

_PREFIXES = {"message": "msg", "function_call": "fc", "custom_tool_call": "ctc"}


def item_id(kind: str, hex: str, number: int) -> str:
    """Returns the id of an item.

    Args:
        kind: its type.
        hex: of the object that it belongs to.
        number: among all of its items.
    """
    return f"{_PREFIXES.get(kind, 'item')}_{hex}{number:04x}"


class MessageItem:
    """A text.

    Args:
        id: of the item.
        index: among the output items.
    """

    def __init__(self, id: str, index: int) -> None:
        self._place = {"item_id": id, "output_index": index}
        self._id = id
        self._texts: list[str] = []
        self._logprobs: list[JsonDict] = []

    def begin(self) -> Iterator[JsonDict]:
        """Yields the events before its first piece."""
        item = {"id": self._id, "type": "message", "status": "in_progress", "role": "assistant", "content": []}
        yield {"type": "response.output_item.added", "output_index": self._place["output_index"], "item": item}
        yield {"type": "response.content_part.added", **self._place, "content_index": 0, "part": _part("", [])}

    def push(self, text: str, logprobs: Sequence[JsonDict]) -> JsonDict:
        """Takes a piece; returns its event."""
        self._texts.append(text)
        self._logprobs += logprobs
        place = {**self._place, "content_index": 0}
        return {"type": "response.output_text.delta", **place, "delta": text, "logprobs": list(logprobs)}

    def end(self, status: str) -> Iterator[JsonDict]:
        """Yields the events after its last piece."""
        place = {**self._place, "content_index": 0}
        text = "".join(self._texts)
        yield {"type": "response.output_text.done", **place, "text": text, "logprobs": self._logprobs}
        yield {"type": "response.content_part.done", **place, "part": _part(text, self._logprobs)}
        index = self._place["output_index"]
        yield {"type": "response.output_item.done", "output_index": index, "item": self.whole(status)}

    def whole(self, status: str) -> JsonDict:
        """Returns the item as it is now."""
        content = [_part("".join(self._texts), self._logprobs)]
        return {"id": self._id, "type": "message", "status": status, "role": "assistant", "content": content}


class CallItem:
    """A call.

    Args:
        id: of the item.
        call_id: pairs it with its result.
        index: among the output items.
        name: of the tool.
        namespace: that the tool stands in, if it does.
        is_custom: the tool is a custom one.
    """

    def __init__(
        self, id: str, call_id: str, index: int, name: str, *, namespace: str = "", is_custom: bool = False
    ) -> None:
        self._place = {"item_id": id, "output_index": index}
        self._key = "input" if is_custom else "arguments"
        self._kind = "custom_tool_call" if is_custom else "function_call"
        self._event = f"response.{'custom_tool_call_input' if is_custom else 'function_call_arguments'}"
        self._id, self._call_id, self._name = id, call_id, name
        self._in_namespace = {"namespace": namespace} if namespace else {}
        self._texts: list[str] = []

    def begin(self) -> Iterator[JsonDict]:
        """Yields the events before its first piece."""
        index = self._place["output_index"]
        yield {"type": "response.output_item.added", "output_index": index, "item": self.whole("in_progress")}

    def push(self, text: str) -> JsonDict:
        """Takes a piece of its input; returns its event."""
        self._texts.append(text)
        return {"type": f"{self._event}.delta", **self._place, "delta": text}

    def end(self, status: str) -> Iterator[JsonDict]:
        """Yields the events after its last piece."""
        done = {"type": f"{self._event}.done", **self._place, self._key: "".join(self._texts)}
        yield done if self._kind == "custom_tool_call" else {**done, "name": self._name}
        index = self._place["output_index"]
        yield {"type": "response.output_item.done", "output_index": index, "item": self.whole(status)}

    def whole(self, status: str) -> JsonDict:
        """Returns the item as it is now."""
        return {
            "id": self._id,
            "type": self._kind,
            "status": status,
            "call_id": self._call_id,
            "name": self._name,
            **self._in_namespace,
            self._key: "".join(self._texts),
        }


def _part(text: str, logprobs: Sequence[JsonDict]) -> JsonDict:
    return {"type": "output_text", "annotations": [], "text": text, "logprobs": list(logprobs)}
