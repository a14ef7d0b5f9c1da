"""Replies in ReAct form, from ids to chunks: what a trained model would say, handed over in any steps."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.messages import SequenceOutput
from model.sampling_params import SamplingParams
from prompts.react_parser import ReActParser
from prompts.stop import StopStrings
from server.chat_reply import ChatReply
from server.engine_client import Prompt
from server.generation_request import GenerationRequest, ReplyReading
from server.output_processor import ChoiceProcessor
from tests.support.vocabulary import byte_tokenizer, score
from tests.support.wire import assert_same, flat_chat, fold_chat

JsonDict = dict[str, Any]
TOKENIZER = byte_tokenizer()
USAGE = {"prompt_tokens": 1, "completion_tokens": 1}
CALL = "Thought: t\nAction: f\nAction Input: "


def replied(
    steps: list[list[int]],
    *,
    finish: str = "stop",
    opening: str = "",
    allow_calls: bool = True,
    is_legacy: bool = False,
    stops: tuple[str, ...] = (),
) -> JsonDict:
    """The folded reply, having checked that the stream says the same."""
    request = GenerationRequest(
        prompts=(Prompt([1], SamplingParams(max_tokens=99)),),
        reading=ReplyReading(opening, allow_calls, is_legacy),
        num_top_logprobs=1,
        return_token_ids=True,
    )
    processor = ChoiceProcessor(
        0, TOKENIZER, stops=StopStrings(stops), with_logprobs=True, parser=ReActParser(opening, allow_calls=allow_calls)
    )
    whole, streamed = (ChatReply(request, "m", TOKENIZER) for _ in range(2))
    chunks = []
    for number, ids in enumerate(steps):
        reason = finish if number == len(steps) - 1 else None
        delta = processor.push(SequenceOutput(1, ids, reason, logprobs=[score(i) for i in ids]))
        for chunk in whole.chunks(delta):
            whole.add(chunk)
        chunks += list(streamed.chunks(delta))
        if processor.finished:
            break
    result = flat_chat(whole.result(USAGE))
    assert_same(fold_chat([*chunks, streamed.usage_chunk(USAGE)]), result)
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


def test_without_leave_a_call_is_none() -> None:
    choice = replied([*bytewise(CALL + "{}"), []], allow_calls=False)
    assert (choice["content"], choice["calls"], choice["finish_reason"]) == ("t", [], "stop")


def test_a_stop_word_inside_a_call() -> None:
    choice = replied([*bytewise(CALL + '{"a": "STOP"}'), []], stops=("STOP",))
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "STOP")
    assert choice["calls"][0]["arguments"] == '{"a": "'


LABELS = [b"Thought:", b"Action:", b"Action Input:", b"Observation:", b"Final Answer:"]
fragments = st.sampled_from(
    [*LABELS, b"\n", b" ", b"f", b"{}", b'{"a": 1}', "中".encode(), "🙂".encode()[:2], b"Act", b"\nObs", b"plain words"]
)


@settings(deadline=None, derandomize=True, database=None, max_examples=150)
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
    shown = "\n" + said["content"]
    assert "\nObservation:" not in shown
    if said["calls"]:
        assert len(said["calls"]) == 1
        assert said["calls"][0]["name"]
