"""Stop words over HTTP and, where time would decide, at the place that decides what is held back."""

from __future__ import annotations

from typing import Any

import pytest

from model.contract.messages import SequenceOutput
from prompts.stop import StopStrings
from server.replies.output_processor import ChoiceProcessor
from tests.support.readable_requests import LETTERS
from tests.support.vocabulary import byte_tokenizer
from tests.support.wire import Wire, events

JsonDict = dict[str, Any]
TEXT = "one 中文 🙂 two"
LONG_STOPS = [f"a stop string that is long and never comes, number {number} " * 3 for number in range(16)]


def say(wire: Wire, text: str, **wishes: Any) -> JsonDict:
    return wire.choice(structured_outputs={"choice": [text]}, **wishes)


@pytest.mark.parametrize(
    ("stop", "left"),
    [
        ("中", "one "),
        ("e 中文 🙂 t", "on"),  # many tokens and chunks
        ("🙂", "one 中文 "),
        (["zzz", "文 ", " two"], "one 中"),
        (["one 中文 🙂 two!", "wo"], "one 中文 🙂 t"),
        ("o", ""),
    ],
)
def test_strings_across_tokens_and_chunks(wire: Wire, stop: str | list[str], left: str) -> None:
    choice = say(wire, TEXT, stop=stop)
    assert (choice["content"], choice["finish_reason"]) == (left, "stop")
    matched = choice["stop_reason"]
    assert matched in ([stop] if isinstance(stop, str) else stop)
    included = say(wire, TEXT, stop=stop, include_stop_str_in_output=True)
    assert included["content"] == left + matched
    text = wire.ok(
        "/v1/completions", {"prompt": "a", "structured_outputs": {"choice": [TEXT]}, "stop": stop, "max_tokens": 60}
    )
    assert text["choices"][0]["text"] == left


def test_what_only_begins_like_a_stop_is_shown(wire: Wire) -> None:
    for stop in ("two!", [" twx", "🙂 two more"]):
        choice = say(wire, TEXT, stop=stop)
        assert (choice["content"], choice["finish_reason"], choice["stop_reason"]) == (TEXT, "stop", None)


def test_ids(wire: Wire) -> None:
    choice = say(wire, "abcd", stop_token_ids=[ord("c")])
    assert (choice["content"], choice["finish_reason"], choice["stop_reason"]) == ("ab", "stop", ord("c"))
    assert say(wire, "abcd", stop_token_ids=[ord("c")], include_stop_str_in_output=True)["content"] == "abc"
    inside = say(wire, "中", stop_token_ids=["中".encode()[2]])
    assert (inside["content"], inside["stop_reason"]) == ("\ufffd", "中".encode()[2])
    both = say(wire, "abcd", stop_token_ids=[ord("d")], stop="bc")
    assert (both["content"], both["stop_reason"]) == ("a", "bc")


def test_they_cost_no_tokens_that_were_not_generated(wire: Wire) -> None:
    reply = wire.chat(structured_outputs={"choice": ["abcdefgh"]}, stop="cd")
    assert reply["usage"]["completion_tokens"] == 4


def test_an_observation_ends_the_reply_of_a_text_agent(wire: Wire) -> None:
    step = "Thought: look\nAction: clock\nAction Input: now"
    choice = say(wire, f"{step}\nObservation: made up", stop=["\nObservation"])
    assert (choice["content"], choice["finish_reason"]) == (step, "stop")


def test_a_long_list_holds_nothing_back_over_http(wire: Wire) -> None:
    """Every token whose text no stop string begins with comes in a chunk of its own, with a list and without."""
    body: JsonDict = {
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 30,
        "logit_bias": {key: value for key, value in LETTERS.items() if key != str(ord("a"))},
        "temperature": 0,
        "stream": True,
        "return_token_ids": True,
    }
    shapes = []
    for stops in (None, LONG_STOPS):
        response = wire.http.post("/v1/chat/completions", json={**body, "stop": stops})
        deltas = [chunk["choices"][0]["delta"] for chunk in events(response.text)]
        shapes.append("".join(delta.get("content", "") for delta in deltas))
        assert all(delta["content"] for delta in deltas[1:-1])
    assert shapes[0] == shapes[1]


def test_a_long_list_holds_back_only_what_may_begin_a_stop() -> None:
    text = "b an apple, a stop string that is short"
    processor = ChoiceProcessor(0, byte_tokenizer(), stops=StopStrings(LONG_STOPS))
    free = ChoiceProcessor(0, byte_tokenizer())
    seen = shown_without = ""
    for byte in text.encode():
        seen += processor.push(SequenceOutput(1, [byte])).text
        shown_without += free.push(SequenceOutput(1, [byte])).text
        held = shown_without[len(seen) :]
        ends = (shown_without[i:] for i in range(len(shown_without) + 1))
        longest = next(end for end in ends if any(stop.startswith(end) for stop in LONG_STOPS))
        assert held == longest
    assert seen == text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stop": ["x" * 2000]}, "stop"),
        ({"stop": ["x" * 1024] * 5}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": [99999]}, "stop_token_ids"),
    ],
)
def test_what_is_no_stop_is_refused(wire: Wire, body: JsonDict, param: str) -> None:
    assert wire.refused(**body)["param"].startswith(param)
