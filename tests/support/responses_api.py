"""The Responses API in plain JSON, each request streamed and not."""

from __future__ import annotations

import json
from typing import Any

from tests.support.wire import Wire

URL = "/v1/responses"
SEEDED = {"temperature": 1, "seed": 11}
# Of one reply and the next; scores in the last digits.
UNEQUAL = ("id", "call_id", "logprob", "top_logprobs")


def events(text: str) -> list[JsonDict]:
    """The events of a stream, whose names and numbers are as they must be."""
    read = []
    for number, event in enumerate(text.split("\n\n")[:-1]):
        name, data = (line.partition(": ")[2] for line in event.split("\n"))
        read.append(json.loads(data))
        assert (read[-1]["type"], read[-1]["sequence_number"]) == (name, number)
    return read


def bare(response: JsonDict) -> list[JsonDict]:
    """What a response says, without ids and scores."""
    text = json.dumps(response["output"])
    output = json.loads(text, object_hook=lambda d: {k: v for k, v in d.items() if k not in UNEQUAL})
    return list(output)


def respond(wire: Wire, **body: Any) -> JsonDict:
    """A response, asked for both ways: what the events add up to, what the last of them says, and the whole are one."""
    body = {"input": "hi", "temperature": 0, "max_output_tokens": 24, **body}
    whole = wire.ok(URL, body)
    streamed = wire.http.post(URL, json={**body, "stream": True})
    assert streamed.status_code == 200 and streamed.headers["content-type"].startswith("text/event-stream")
    happened = events(streamed.text)
    assert [event["type"] for event in happened[:2]] == ["response.created", "response.in_progress"]
    last = happened[-1]
    assert last["type"] == f"response.{last['response']['status']}"
    assert folded(happened) == last["response"]["output"]
    assert bare(last["response"]) == bare(whole)
    fixed = {"id", "created_at", "completed_at", "output", "usage"}
    assert {k: v for k, v in last["response"].items() if k not in fixed} == {
        k: v for k, v in whole.items() if k not in fixed
    }
    assert last["response"]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    return whole


def folded(happened: list[JsonDict]) -> list[JsonDict]:
    """The output items, made of the events alone."""
    items: list[JsonDict] = []
    for event in happened:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(items)
            items.append(event["item"])
        elif kind == "content_part.added":
            items[-1]["content"].append(event["part"])
        elif kind == "output_text.delta":
            part = items[-1]["content"][event["content_index"]]
            part["text"] += event["delta"]
            part["logprobs"] += event["logprobs"]
        elif kind.endswith(("arguments.delta", "input.delta")):
            items[-1]["arguments" if "arguments" in kind else "input"] += event["delta"]
        elif kind == "content_part.done":
            assert event["part"] == items[-1]["content"][-1]
        elif kind == "output_text.done":
            assert event["text"] == items[-1]["content"][-1]["text"]
        elif kind == "output_item.done":
            assert event["item"] == items[-1] | {"status": event["item"]["status"]}
            items[-1]["status"] = event["item"]["status"]
        if "item_id" in event:
            assert event["item_id"] == items[-1]["id"]
    return items


def said(response: JsonDict) -> tuple[str, list[tuple[str, str]]]:
    text = "".join(p["text"] for item in response["output"] if item["type"] == "message" for p in item["content"])
    calls = [(i["name"], i["arguments"]) for i in response["output"] if i["type"] == "function_call"]
    return text, calls


JsonDict = dict[str, Any]
