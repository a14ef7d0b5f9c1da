"""prompts/call_results.py: which call a result answers, and each call with its results behind it."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from prompts.call_results import OpenCalls, Step, in_steps
from prompts.messages import FunctionCall, Message
from prompts.react.render import render
from tests.support.segments import display


def _calls(*calls: str, content: str = "") -> Message:
    """A message whose calls are written `name:id`."""
    pairs = [call.partition(":") for call in calls]
    return Message("assistant", content, calls=tuple(FunctionCall(name, "{}", id) for name, _, id in pairs))


def _result(text: str, id: str | None = None) -> Message:
    return Message("tool", text, tool_call_id=id)


def _said(text: str) -> Message:
    return Message("assistant", text)


USER = Message("user", "q")


def _story(messages: list[Message]) -> list[str]:
    """Steps as `thought|name|results`, other messages as `role: text`."""
    return [
        f"{step.thought}|{step.call.name}|{'+'.join(step.results)}"
        if isinstance(step, Step)
        else f"{step.role}: {step.content}"
        for step in in_steps(messages)
    ]


@pytest.mark.parametrize(
    ("messages", "story"),
    [
        # the n-th result of an id is of the n-th call that has it
        ([_calls("f:1", "g:1"), _result("x", "1"), _result("y", "1")], ["|f|x", "|g|y"]),
        ([_calls("f:1"), _calls("g:1"), _result("x", "1"), _result("y", "1")], ["|f|x", "|g|y"]),
        ([_calls("f:"), _calls("g:"), _result("x", ""), _result("y", "")], ["|f|x", "|g|y"]),
        ([_calls("f:1", "g:2", "h:1"), *(_result(i, i) for i in "121")], ["|f|1", "|g|2", "|h|1"]),
        ([_calls("f:1", "g:1"), *(_result(i, "1") for i in "xyz")], ["|f|x", "|g|y+z"]),
        ([_calls("f:1", "g:1"), _result("x", "1")], ["|f|x", "|g|"]),
        # ids that come back in another question
        (
            [_calls("f:1"), USER, _calls("g:1"), _result("y", "1")],
            ["|f|", "user: q", "|g|y"],
        ),
        ([_calls("f:1"), USER, _result("x", "1")], ["|f|x", "user: q"]),
        ([_calls("f:1"), _calls("g:1"), USER, _result("y", "1")], ["|f|", "|g|y", "user: q"]),
        # text between results
        (
            [_calls("f:1", "g:2", content="t"), _result("x", "1"), _said("u"), _result("y", "2")],
            ["t|f|x", "u|g|y"],
        ),
        (
            [_calls("f:1", "g:2"), _said("u"), _result("y", "2"), _said("v"), _result("x", "1"), _said("w")],
            ["u|g|y", "v|f|x", "assistant: w"],
        ),
        (
            [_calls("f:1", "g:2"), _result("x", "1"), _said("u"), _calls("h:3", content="v"), _result("z", "3")],
            ["|f|x", "|g|", "assistant: u", "v|h|z"],
        ),
        (
            [_calls("f:1", "g:2"), _result("x", "1"), _said("u"), USER, _result("y", "2")],
            ["|f|x", "|g|y", "assistant: u", "user: q"],
        ),
        # no id, or none that is known
        ([_calls("f:1", "g:2"), _result("y", "2"), _result("x", "?")], ["|f|x", "|g|y"]),
        ([_calls("f:1", "g:2"), _result("x"), _result("y")], ["|f|x", "|g|y"]),
        ([_calls("f:1"), _result("x", "1"), USER, _result("y")], ["|f|x", "user: q", "tool: y"]),
        ([_result("x", "1")], ["tool: x"]),
    ],
)
def test_stories(messages: list[Message], story: list[str]) -> None:
    assert _story(messages) == story


def test_an_answer_out_of_its_turn_opens_a_new_one() -> None:
    messages = [USER, _calls("f:1"), USER, _result("x", "1")]
    text = display(render(messages).segments)
    assert "Observation: x<|im_end|>" in text
    assert text.endswith("user\nq<|im_end|>\n<|im_start|>assistant\n")


def test_calls_that_wait_are_counted() -> None:
    calls = OpenCalls()
    counts = []
    for message in [_calls("f:1", "g:1", "h:2"), _result("x", "1"), _result("y"), USER, _calls("f:3"), _result("z")]:
        calls.push(message)
        counts.append(calls.num_waiting)
    assert counts == [3, 2, 1, 0, 1, 0]
    assert calls.knows("1")
    assert not calls.knows("4")


@pytest.mark.parametrize("ids", [("1",), ("1", "2", "3")])
@pytest.mark.parametrize("named", [True, False])
def test_the_work_grows_with_the_number_of_calls(ids: tuple[str, ...], named: bool) -> None:
    def lines(num_calls: int) -> int:
        calls = [f"f:{ids[number % len(ids)]}" for number in range(num_calls)]
        results = [_result("x", ids[number % len(ids)] if named else None) for number in range(num_calls)]
        count = 0

        def trace(frame: Any, event: str, arg: Any) -> Any:
            nonlocal count
            count += 1
            return trace

        messages = [_calls(*calls), *results]
        sys.settrace(trace)
        try:
            assert all(isinstance(step, Step) and step.results == ("x",) for step in in_steps(messages))
        finally:
            sys.settrace(None)
        return count

    assert lines(400) < 5 * lines(100)
