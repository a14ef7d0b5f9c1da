"""Replies in ReAct form, from ids to chunks: what a trained model would say, handed over in any steps."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.contract.messages import SequenceOutput
from model.contract.sampling_params import SamplingParams
from prompts.react.parser import ReActParser
from prompts.stop import StopStrings
from server.conversion.generation_request import GenerationRequest
from server.engine.client import Prompt
from server.replies.chat import ChatReply
from server.replies.generation import TokenUsage
from server.replies.output_processor import ChoiceProcessor
from tests.support.vocabulary import byte_tokenizer, score
from tests.support.wire import assert_same, flat_chat, fold_chat

JsonDict = dict[str, Any]
TOKENIZER = byte_tokenizer()
USAGE = TokenUsage(num_prompt=1, num_completion=1, num_cached=0)
CALL = "Thought: t\nAction: f\nAction Input: "
ANSWERING = "Thought: I now know the final answer.\nFinal Answer:"


def replied(
    steps: list[list[int]],
    *,
    finish: str = "stop",
    opening: str = "",
    names: tuple[str, ...] = ("f", "g"),
    is_legacy: bool = False,
    stops: tuple[str, ...] = (),
) -> JsonDict:
    """The folded reply, having checked that the stream says the same."""
    request = GenerationRequest(
        prompts=(Prompt([1], SamplingParams(max_tokens=99)),),
        num_logprobs=1,
        return_token_ids=True,
    )
    processor = ChoiceProcessor(
        0, TOKENIZER, stops=StopStrings(stops), with_logprobs=True, parser=ReActParser(opening, names)
    )
    whole, streamed = (ChatReply(request, "m", TOKENIZER, is_legacy=is_legacy, include_usage=True) for _ in range(2))
    chunks = []
    for number, ids in enumerate(steps):
        reason = finish if number == len(steps) - 1 else None
        delta = processor.push(SequenceOutput(1, ids, reason, logprobs=[score(i) for i in ids]))
        whole.add([delta])
        chunks += list(streamed.chunks(delta))
        if processor.finished:
            break
    result = flat_chat(json.loads(whole.whole(USAGE)))
    last, done = streamed.ending(USAGE).decode().removeprefix("data: ").split("\n\n", 1)
    assert done == "data: [DONE]\n\n"
    assert_same(fold_chat([*chunks, json.loads(last)]), result)
    (choice,) = result["choices"]
    assert isinstance(choice, dict)
    return choice


def bytewise(text: str) -> list[list[int]]:
    return [[byte] for byte in text.encode()]


@pytest.mark.parametrize(
    ("text", "finish", "content", "calls", "reason"),
    [
        (CALL + '{"a": 1}', "stop", "t", [("f", '{"a": 1}')], "tool_calls"),
        (CALL + '{"a": 1}\nObservation: made up', "stop", "t", [("f", '{"a": 1}')], "tool_calls"),
        (CALL + '{"a": 1}', "length", "t", [("f", '{"a": 1}')], "length"),
        (CALL + '{"a": ', "length", "t", [("f", '{"a":')], "length"),
        (CALL + '{"a": ', "stop", "t", [("f", '{"a":')], "stop"),
        (CALL, "stop", "t", [("f", "{}")], "stop"),
        ("Thought: t\nAction: f", "length", "t", [], "length"),
        ("Thought: t\nActi", "length", "t", [], "length"),
        ("Thought: t\nFinal Answer: 42", "stop", "42", [], "stop"),
        ("Thought: t\nFinal Answer: 42", "length", "42", [], "length"),
        ("Thought: only that", "stop", "only that", [], "stop"),
        ("plain\nwords", "stop", "plain\nwords", [], "stop"),
        ("", "stop", "", [], "stop"),
    ],
)
def test_what_becomes_of_a_reply(
    text: str, finish: str, content: str, calls: list[tuple[str, str]], reason: str
) -> None:
    choice = replied([*bytewise(text), []], finish=finish)
    assert (choice["content"], choice["finish_reason"]) == (content, reason)
    assert [(call["name"], call["arguments"]) for call in choice["calls"]] == calls


def test_generation_ends_at_an_observation() -> None:
    text = CALL + "{}\nObservation: 1\nThought: x\nAction: g\nAction Input: {}"
    choice = replied([*bytewise(text), []])
    assert len(choice["token_ids"]) == text.index(" 1")
    assert choice["finish_reason"] == "tool_calls"


def test_openings_and_legacy_form() -> None:
    opening = "Thought: \nAction: f\nAction Input:"
    for is_legacy, reason in ((False, "tool_calls"), (True, "function_call")):
        choice = replied([*bytewise(" {}"), []], opening=opening, is_legacy=is_legacy)
        assert choice["calls"] == [{"name": "f", "arguments": "{}"}]
        assert choice["finish_reason"] == reason
    cut = replied([*bytewise(' {"a'), []], opening=opening, is_legacy=True, finish="length")
    assert (cut["finish_reason"], cut["calls"][0]["arguments"]) == ("length", '{"a')


def test_what_is_no_call_is_shown() -> None:
    text = CALL + "{}"
    assert replied([*bytewise(f" {text}"), []], opening=ANSWERING, names=())["content"] == text
    assert replied([*bytewise(f"So: {text}"), []])["content"] == f"So: {text}"


@pytest.mark.parametrize("stop", ["\n", "}", ":", "f", "Action", " ", "{"])
@pytest.mark.parametrize("opening", ["Thought: ", "Thought: \nAction: ", "Thought: \nAction: f\nAction Input: "])
def test_a_stop_string_is_not_looked_for_in_a_call(stop: str, opening: str) -> None:
    said = 'Thought: \nAction: f\nAction Input: {"a": {"b": 1}}'.removeprefix(opening)
    choice = replied([*bytewise(said), []], opening=opening, stops=(stop,))
    assert choice["calls"] == [{"name": "f", "arguments": '{"a": {"b": 1}}'}]
    assert (choice["content"], choice["finish_reason"], choice["stop_reason"]) == ("", "tool_calls", None)


@pytest.mark.parametrize(
    ("text", "stop", "content", "is_found"),
    [
        (CALL.replace("t\n", "look\nhere\n") + "{}", "\n", "look", True),
        ("Thought: a\nFinal Answer: b\nc", "\n", "b", True),
        ("Thought: a\nFinal Answer: b\nc", "a", "b\nc", False),
        ("Thought: only a", "a", "only ", True),
        ("Thought: t\nFinal Answer: sto", "stop", "sto", False),
        ("a\nFinal Answer: b", "r:", "a\nFinal Answe", True),
        ("Action: f\nAction In", "Action In", "Action: f\n", True),
    ],
)
def test_stop_strings_are_matched_on_what_is_shown(text: str, stop: str, content: str, is_found: bool) -> None:
    choice = replied([*bytewise(text), []], stops=(stop,))
    assert (choice["content"], choice["stop_reason"]) == (content, stop if is_found else None)
    assert (choice["finish_reason"], choice["calls"]) == ("stop", [])


def test_log_probabilities_end_with_the_text_at_a_stop_string() -> None:
    choice = replied([*bytewise("Minutes\nAction: Bob calls."), []], stops=(" Bob",))
    assert choice["content"] == "Minutes\nAction:"
    assert bytes(byte for entry in choice["logprobs"] for byte in entry["bytes"]).decode() == choice["content"]


LABELS = [b"Thought:", b"Action:", b"Action Input:", b"Observation:", b"Final Answer:"]
fragments = st.sampled_from(
    [*LABELS, b"\n", b" ", b"f", b"{}", b'{"a": 1}', "中".encode(), "🙂".encode()[:2], b"Act", b"\nObs", b"plain words"]
)


@settings(max_examples=150)
@given(
    text=st.lists(fragments, max_size=12).map(b"".join),
    cuts=st.lists(st.integers(1, 9), max_size=30),
    finish=st.sampled_from(["stop", "length"]),
    opening=st.sampled_from(["", "Thought:", "Thought: \nAction:", "Thought: \nAction: f\nAction Input:"]),
    stops=st.sampled_from([(), ("words",), ("\nObservation", "a")]),
)
def test_steps_of_any_size_give_one_reply(
    text: bytes, cuts: list[int], finish: str, opening: str, stops: tuple[str, ...]
) -> None:
    steps, rest = [], list(text)
    for cut in cuts:
        steps.append(rest[:cut])
        rest = rest[cut:]
    said = replied([*steps, rest], finish=finish, opening=opening, stops=stops)
    at_once = replied([list(text)], finish=finish, opening=opening, stops=stops)
    assert said == at_once
    if said["calls"]:
        assert len(said["calls"]) == 1
        assert said["calls"][0]["name"]
