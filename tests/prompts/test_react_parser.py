"""prompts/react_parser.py against the published reader, at every split."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompts.messages import FunctionCall
from prompts.react_parser import (
    CallArguments,
    CallEnd,
    CallStart,
    Content,
    Event,
    ParsedReply,
    ReActParser,
    fold,
)

LABELS = ("Thought:", "Action:", "Action Input:", "Observation:", "Final Answer:")


def _events(chunks: list[str], initial: str = "", **options: Any) -> list[Event]:
    parser = ReActParser(initial, **options)
    events = [event for chunk in chunks for event in parser.push(chunk)]
    return events + parser.flush()


def _joined(events: list[Event]) -> list[Event]:
    """Events with neighbouring pieces joined, so that they do not depend on the chunks."""
    joined: list[Event] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, Content | CallArguments) and type(last) is type(event):
            joined[-1] = type(event)(last.text + event.text)  # type: ignore[union-attr]
        else:
            joined.append(event)
    return joined


def _reply(text: str, initial: str = "", **options: Any) -> ParsedReply:
    """The reply, having checked that every split of the text gives the same."""
    whole = _joined(_events([text], initial, **options))
    for chunks in [*([text[:i], text[i:]] for i in range(len(text) + 1)), list(text)]:
        assert _joined(_events(chunks, initial, **options)) == whole
    return fold(whole)


def _answer(content: str) -> ParsedReply:
    return ParsedReply(content, ())


def _calls(content: str | None, name: str, arguments: str = "{}") -> ParsedReply:
    return ParsedReply(content, (FunctionCall(name, arguments),))


# What the published reader shows of these is plainly wrong; see ReActParser.
SANE = {
    "Thought: t\nAction: f": "t",
    "Final Answer: no newline before": "no newline before",
    "Thought: t\nFinal Answer: one\nFinal Answer: two": "one",
}


def test_published_readings(react_cases: dict[str, Any]) -> None:
    cases = react_cases["responses"]
    assert SANE.keys() <= {case["text"] for case in cases}
    for case in cases:
        reply = _reply(case["text"])
        call = case["function_call"]
        assert reply.calls == ((FunctionCall(call["name"], call["arguments"]),) if call else ())
        # Nothing said before a call is null on the wire, where the published server said "".
        assert (reply.content or "") == SANE.get(case["text"], case["content"])


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        # plain text
        ("", _answer("")),
        ("  \n", _answer("")),
        ("A", _answer("A")),
        ("Action", _answer("Action")),
        ("\n a\n\n b \n", _answer("a\n\n b")),
        ("My Thought: x", _answer("My Thought: x")),
        ("a\n Action: f\nb", _answer("a\n Action: f\nb")),
        ("thought: x\nFINAL ANSWER: y", _answer("thought: x\nFINAL ANSWER: y")),
        ("Plan:\nAction: go home\nDone.", _answer("Plan:\nAction: go home\nDone.")),
        ("Plan:\nAction: go home", _answer("Plan:\nAction: go home")),
        ("Plan:\nAction:\nAction Input: x", _answer("Plan:\nAction:\nAction Input: x")),
        ("Action: a\nAction: b\nc", _answer("Action: a\nAction: b\nc")),
        ("a\nAction Input: x", _answer("a\nAction Input: x")),
        ("a\nObservation: x\nb", _answer("a")),
        ("Observation: x", _answer("")),
        # answers
        ("Thought: t\nFinal Answer:  a\n b\n", _answer("a\n b")),
        ("Final Answer:", _answer("")),
        ("Final Answer:42", _answer("42")),
        ("Thought: Final Answer: 42", _answer("42")),
        ("Thought: t\nFinal Answer:\nFinal Answer: 42", _answer("42")),
        ("Thought: t\nFinal Answer: a\nThought: u\nAction: f\nAction Input: {}", _answer("a")),
        ("Thought: t\nFinal Answer: a\nObservation: b", _answer("a")),
        ("Thought: t\nFinal Answer: a\nThough", _answer("a\nThough")),
        ("Thought: t\nAction: none\nFinal Answer: a", _answer("a")),
        ("Thought: t\nAction Input: {}\nFinal Answer: a", _answer("a")),
        ("Sure.\n\nFinal Answer: a", _answer("Sure.\na")),
        # thoughts with nothing after them
        ("Thought:", _answer("")),
        ("Thought: t", _answer("t")),
        ("Thought: t\nActi", _answer("t")),
        ("Thought: t\nObservation: r", _answer("t")),
        ("Sure.\nThought: t", _answer("Sure.\nt")),
        ("Thought: t\nAction:\nAction Input: {}", _answer("t")),
        ("Thought: t\nAction Input: {}", _answer("t")),
        # calls
        ("Action: f\nAction Input: {}", _calls(None, "f")),
        ("Thought:\nAction: f\nAction Input:", _calls(None, "f")),
        ("Thought:t\nAction:f\nAction Input:x", _calls("t", "f", "x")),
        ("Thought: Action: f\nAction Input: x", _calls(None, "f", "x")),
        ("Thought: t\n\nAction: f\n\nAction Input: \n x\n\n", _calls("t", "f", "x")),
        ("Thought: t\nAction: f\njunk\nAction Input: x", _calls("t", "f", "x")),
        ("Thought: t\nAction: f\nThought: u\nAction: g\nAction Input: x", _calls("t\n u", "g", "x")),
        ("Sure!\nAction: f\nAction Input: x", _calls("Sure!", "f", "x")),
        ("Sure!\nThought: t\nAction: f\nAction Input: x", _calls("Sure!\nt", "f", "x")),
        ("a\nAction: b\nAction: f\nAction Input: x", _calls("a\nAction: b", "f", "x")),
        (
            'Action: f\nAction Input: {"a": "Observation: x\\nAction: g"}',
            _calls(None, "f", '{"a": "Observation: x\\nAction: g"}'),
        ),
        ('Action: f\nAction Input: {"a": 1}\nObserv', _calls(None, "f", '{"a": 1}')),
        ('Action: f\nAction Input: {"a":\nObserv', _calls(None, "f", '{"a":\nObserv')),
        ("Action: f\nAction Input: {}\nAction: g\nAction Input: {}", _calls(None, "f")),
        ("Action: f\nAction Input: 1\nFinal Answer: a", _calls(None, "f", "1")),
        ("Action: f\nAction Input:\nObservation: r\nThought: u", _calls(None, "f")),
    ],
)
def test_readings(text: str, reply: ParsedReply) -> None:
    assert _reply(text) == reply


@pytest.mark.parametrize(
    ("initial", "text", "reply"),
    [
        ("Thought:", " t\nFinal Answer: a", _answer("a")),
        ("Thought:", " t\nAction: f\nAction Input: x", _calls("t", "f", "x")),
        ("Thought:", " just this", _answer("just this")),
        ("Thought: \nAction:", " f\nAction Input: x", _calls(None, "f", "x")),
        ("Thought: \nAction:", "", _answer("")),
        ("Thought: \nAction: f\nAction Input:", "", _calls(None, "f")),
        ("Thought: \nAction: f\nAction Input:", ' {"a": 1}\nObservation: 2', _calls(None, "f", '{"a": 1}')),
        ("Thought: I now know the final answer.\nFinal Answer:", " a\n", _answer("a")),
        ("Thought: I now know the final answer.\nFinal Answer: x", " a\n", _answer(" a")),
        ("Thought: I now know the final answer.\nFinal Answer: x", "Action: b", _answer("Action: b")),
        ("Thought: I now know the final answer.\nFinal Answer: x", "\nAction: b", _answer("")),
    ],
)
def test_readings_of_an_opened_turn(initial: str, text: str, reply: ParsedReply) -> None:
    assert _reply(text, initial) == reply


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("Thought: t\nAction: f\nAction Input: x", _answer("t")),
        ("Sure.\nAction: f\nAction Input: x\nFinal Answer: a", _answer("Sure.")),
        ("Thought: t\nFinal Answer: a", _answer("a")),
    ],
)
def test_without_tools_nothing_is_a_call(text: str, reply: ParsedReply) -> None:
    assert _reply(text, allow_calls=False) == reply


def test_deeply_nested_arguments_do_not_overflow() -> None:
    assert fold(_events(["Action: f\nAction Input: " + "[" * 100_000])).calls[0].arguments == "[" * 100_000


# -- anything at all

FRAGMENTS = [
    *LABELS,
    *("\n" + label for label in LABELS),
    " ",
    "\n",
    "f",
    "{}",
    '{"a": 1}',
    "text",
    "Thoug",
    "Act",
    "A",
]
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=14).map("".join)


@settings(max_examples=400, deadline=None)
@given(TEXTS, st.data(), st.sampled_from(["", "Thought:", "Thought: \nAction:", "Thought: \nAction: f\nAction Input:"]))
def test_any_chunks_are_read_as_the_whole_text(text: str, data: st.DataObject, initial: str) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert _joined(_events(chunks, initial)) == _joined(_events([text], initial))


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_calls_are_well_formed(text: str) -> None:
    events = _joined(_events(list(text)))
    shape = "".join({CallStart: "s", CallArguments: "a", CallEnd: "e"}.get(type(event), "") for event in events)
    assert shape in ("", "sae")
    for event in events:
        if isinstance(event, CallStart):
            assert event.name == event.name.strip() != ""


# Words that are no scaffolding, in the order the model writes steps.
WORDS = st.text('abc {}":1\n', max_size=12)


@settings(max_examples=300, deadline=None)
@given(WORDS, WORDS, WORDS, st.sampled_from(["f", "get_weather"]), st.booleans(), st.booleans())
def test_scaffolding_of_proper_replies_is_never_shown(
    before: str, thought: str, arguments: str, name: str, is_call: bool, has_more: bool
) -> None:
    step = f"\nAction: {name}\nAction Input: {arguments}" if is_call else f"\nFinal Answer: {arguments}"
    more = "\nObservation: r\nThought: u\nFinal Answer: v" if has_more else ""
    reply = fold(_events(list(f"{before}\nThought: {thought}{step}{more}")))
    said = [before.strip(), thought.strip()] if is_call else [before.strip(), arguments.strip()]
    assert (reply.content or "") == "\n".join(filter(None, said))
    assert reply.calls == ((FunctionCall(name, arguments.strip() or "{}"),) if is_call else ())
