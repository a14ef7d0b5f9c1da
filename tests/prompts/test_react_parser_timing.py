"""prompts/react/parser.py: when a client gets to see what, and when a reply is over."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompts.react.parser import ReActParser
from prompts.reply_events import CallArguments, CallEnd, CallStart, Content, Thought
from tests.support.parsed_replies import fold


def test_a_named_call_starts_with_the_first_piece() -> None:
    parser = ReActParser("Thought: \nAction: f\nAction Input:")
    assert parser.push("") == [CallStart("f")]
    assert parser.push(' {"a"') == [CallArguments('{"a"')]
    assert parser.push(": 1} ") == [CallArguments(": 1}")]
    assert parser.flush() == [CallEnd()]


def test_a_thought_waits_for_what_it_leads_to() -> None:
    parser = ReActParser("", "f")
    assert parser.push("Thought: t") == []
    assert parser.push("\nAction: f\nAction Input:") == [Content("t"), CallStart("f")]
    parser = ReActParser()
    assert parser.push("Thought: t\nFinal Answer: a") == [Thought("t"), Content("a")]


@pytest.mark.parametrize(
    ("chunks", "shown"),
    [
        (["Th", "is ", "is", "\n", "A", "ll"], ["", "This ", "is", "\n", "A", "ll"]),
        (["\n", "Action:", " fo", "x\n", "Action:"], ["", "", "\nAction: fo", "x\n", "Action:"]),
        (["Thought: ", "t\nFinal Answer: ", "4", "2", "\nThough", "t"], ["", "", "4", "2", "\nThough", "t"]),
        (["Plan:\nAction:", " f", "\n", "Action Input:"], ["Plan:\nAction:", " f", "\n", "Action Input:"]),
    ],
)
def test_text_flows(chunks: list[str], shown: list[str]) -> None:
    parser = ReActParser("", "f")
    assert [fold(parser.push(chunk)).content for chunk in chunks] == shown


@settings(max_examples=300)
@given(st.text("aAct:io \nTF", max_size=40))
def test_only_what_a_turn_begins_with_is_held_back(text: str) -> None:
    parser = ReActParser("", "f")
    shown = ""
    for end, character in enumerate(text, start=1):
        shown += fold(parser.push(character)).content or ""
        held = text[:end].removeprefix(shown)
        assert shown + held == text[:end]
        assert any(opening.startswith(held.lstrip()) for opening in ("Thought:", "Action: f\nAction Input:"))
        assert not (shown and held)


@pytest.mark.parametrize(
    ("text", "done"),
    [
        ("Thought: t\nAction: f\nAction Input: {}", False),
        ("Thought: t\nAction: f\nAction Input: {}\nObservation:", True),
        ("Thought: t\nAction: f\nAction Input: {}\nThought:", True),
        ("Thought: t\nFinal Answer: a\n\n", False),
        ("Thought: t\nFinal Answer: a\nObservation:", False),
        ("plain", False),
        ("plain\nObservation:", False),
        ("Thought: t\nObservation:", True),
    ],
)
def test_done(text: str, done: bool) -> None:
    parser = ReActParser("", "f")
    parser.push(text)
    assert parser.done is done
    if done:
        assert parser.push("\nAction: g\nAction Input: {}") == []
        assert parser.flush() == []


@pytest.mark.parametrize(
    ("text", "unfinished"),
    [
        ("Thought: t\nAction: f", True),
        ("Action: f\nAction Input:", True),
        ('Action: f\nAction Input: {"a": ', True),
        ('Action: f\nAction Input: {"a": 1}', False),
        ("Action: f\nAction Input: x\nObservation:", False),
        ("Thought: t", False),
        ("plain", False),
    ],
)
def test_unfinished_call(text: str, unfinished: bool) -> None:
    parser = ReActParser("", "f")
    parser.push(text)
    parser.flush()
    assert parser.unfinished_call is unfinished
