"""Requests sent as plain JSON, and streams folded back into what the unstreamed reply must be."""

from __future__ import annotations

import json
from typing import Any

import httpx

JsonDict = dict[str, Any]

WEATHER: JsonDict = {
    "name": "get_weather",
    "description": "Tells the weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 6}, "unit": {"enum": ["c", "f"]}},
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
}
CLOCK: JsonDict = {"name": "clock", "description": "Tells the time."}
TOOLS: list[JsonDict] = [{"type": "function", "function": function} for function in (WEATHER, CLOCK)]


def named(name: str) -> JsonDict:
    """The tool choice that forces one tool."""
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> JsonDict:
    """The tool choice that limits the tools."""
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named(name) for name in names]}}


def events(text: str) -> list[JsonDict]:
    """The objects of an event stream, which must end as it should."""
    lines = [line for line in text.splitlines() if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def fold_chat(chunks: list[JsonDict]) -> JsonDict:
    """Joins the chunks of a chat as a client does, checking their order on the way."""
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    choices: dict[int, JsonDict] = {}
    usage = None
    for chunk in chunks:
        assert usage is None, "nothing follows the usage"
        usage = chunk.get("usage")
        for piece in chunk["choices"]:
            _fold_piece(choices, piece)
    assert all(choice["finish_reason"] for choice in choices.values())
    return {"choices": [choices[index] for index in sorted(choices)], "usage": usage}


def _fold_piece(choices: dict[int, JsonDict], piece: JsonDict) -> None:
    delta = piece["delta"]
    if piece["index"] not in choices:
        assert delta == {"role": "assistant", "content": ""}, "the first chunk says who speaks"
        choices[piece["index"]] = {"content": "", "calls": [], "finish_reason": None, "logprobs": [], "token_ids": []}
    choice = choices[piece["index"]]
    assert choice["finish_reason"] is None, "nothing follows the end"
    if piece["finish_reason"] is not None:
        assert delta == {}
        choice["finish_reason"] = piece["finish_reason"]
        choice["stop_reason"] = piece["stop_reason"]
    choice["content"] += delta.get("content") or ""
    choice["logprobs"] += (piece["logprobs"] or {"content": []})["content"]
    choice["token_ids"] += piece.get("token_ids") or []
    if "function_call" in delta:
        _fold_function(choice["calls"], delta["function_call"], is_first="name" in delta["function_call"])
    for call in delta.get("tool_calls", ()):
        assert call["index"] == 0
        is_first = "id" in call
        called = call.get("function") or as_function(call["custom"])
        assert is_first == ("name" in called) == ("type" in call)
        assert not is_first or call["type"] in call
        _fold_function(choice["calls"], called, is_first=is_first)


def _fold_function(calls: list[JsonDict], function: JsonDict, *, is_first: bool) -> None:
    if is_first:
        calls.append({"name": function["name"], "arguments": ""})
    calls[-1]["arguments"] += function["arguments"]


def as_function(custom: JsonDict) -> JsonDict:
    """A custom tool's call in the shape of a function's, its input marked as such."""
    return {"arguments" if key == "input" else key: text for key, text in custom.items()}


def flat_chat(reply: JsonDict) -> JsonDict:
    """An unstreamed reply in the shape of `fold_chat`."""
    choices = []
    for choice in reply["choices"]:
        message = choice["message"]
        assert (message["role"], message["refusal"]) == ("assistant", None)
        calls = [
            call["function"] if call["type"] == "function" else as_function(call["custom"])
            for call in message.get("tool_calls", ())
        ]
        calls += [message["function_call"]] if message.get("function_call") else []
        choices.append(
            {
                "content": message["content"] or "",
                "calls": calls,
                "finish_reason": choice["finish_reason"],
                "stop_reason": choice["stop_reason"],
                "logprobs": (choice["logprobs"] or {"content": []})["content"],
                "token_ids": choice.get("token_ids", []),
            }
        )
    return {"choices": choices, "usage": reply["usage"]}


def assert_same(streamed: JsonDict, whole: JsonDict, about: object = None) -> None:
    """Checks that two folded replies to the same request are equal.

    All but what depends on who asked before (cached tokens), and the last digits of scores, which depend on what else
    was in the batch.
    """
    assert _exact(streamed) == _exact(whole), about
    for ours, theirs in zip(streamed["choices"], whole["choices"], strict=True):
        for one, other in zip(ours["logprobs"], theirs["logprobs"], strict=True):
            assert abs(one["logprob"] - other["logprob"]) < 1e-3


def _exact(reply: JsonDict) -> JsonDict:
    usage = {key: value for key, value in reply["usage"].items() if key != "prompt_tokens_details"}
    choices = [
        {**choice, "logprobs": [(entry["token"], entry["bytes"]) for entry in choice["logprobs"]]}
        for choice in reply["choices"]
    ]
    return {"choices": choices, "usage": usage}


class Wire:
    """A server spoken to without any SDK.

    Args:
        url: of the server.
    """

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=60)

    def chat(self, **body: Any) -> JsonDict:
        """The choices of a reply, which is asked for both ways and must be the same."""
        body = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 120, **body}
        whole = flat_chat(self.ok("/v1/chat/completions", body))
        streamed = self.http.post(
            "/v1/chat/completions", json={**body, "stream": True, "stream_options": {"include_usage": True}}
        )
        assert streamed.status_code == 200, streamed.text
        assert_same(fold_chat(events(streamed.text)), whole, body)
        return whole

    def choice(self, **body: Any) -> JsonDict:
        """The only choice of a reply."""
        (choice,) = self.chat(**body)["choices"]
        assert isinstance(choice, dict)
        return choice

    def ok(self, path: str, body: JsonDict) -> JsonDict:
        """The reply to a request that must succeed."""
        response = self.http.post(path, json=body)
        assert response.status_code == 200, response.text
        reply = response.json()
        assert isinstance(reply, dict)
        return reply

    def refused(self, path: str = "/v1/chat/completions", **body: Any) -> JsonDict:
        """The error of a request that must be a 400."""
        messages = {} if "messages" in body or path == "/v1/completions" else {"messages": [_HI]}
        response = self.http.post(path, json={**messages, "max_tokens": 2, **body})
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert error["message"]
        assert isinstance(error, dict)
        return error


_HI = {"role": "user", "content": "hi"}


def raw_request(path: str, body: dict[str, object]) -> bytes:
    content = json.dumps(body).encode()
    head = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    return "\r\n".join((*head, f"Content-Length: {len(content)}", "", "")).encode() + content
