"""prompts/react/parser.py against the published reader, at every split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompts.messages import FunctionCall
from prompts.react.parser import ReActParser
from prompts.reply_events import CallArguments, CallEnd, CallStart, Content, Event
from tests.support.parsed_replies import ParsedReply, fold

LABELS = ("Thought:", "Action:", "Action Input:", "Observation:", "Final Answer:")
NAMES = ("f", "g", "get_weather")
ANSWERING = "Thought: I now know the final answer.\nFinal Answer:"


def _events(chunks: list[str], opening: str = "", names: Sequence[str] = NAMES, *, is_cut: bool = False) -> list[Event]:
    parser = ReActParser(opening, names)
    events = [event for chunk in chunks for event in parser.push(chunk)]
    return events + parser.flush(is_cut=is_cut)


TEXT_TOOL = "Thought: t\nAction: py\nAction Input:"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (" ```py\nprint('a')\n```", "```py\nprint('a')\n```"),
        ("\n```\nx = 1\n\n  y\n```\nObservation: 2", "```\nx = 1\n\n  y\n```"),
        (" Action: is text here\nThought: too\nFinal Answer: as well", None),
        (' {"a": "b"}', None),
        (" two\nObservation:", "two"),
        ("", ""),
    ],
)
@pytest.mark.parametrize("is_cut", [False, True])
def test_the_input_of_a_text_tool_is_passed_as_written(written: str, read: str | None, is_cut: bool) -> None:
    text = TEXT_TOOL + written
    whole = None
    for chunks in [[text], *([text[:i], text[i:]] for i in range(len(text))), list(text)]:
        parser = ReActParser("", ("py", "f"), {"py"})
        events = [event for chunk in chunks for event in parser.push(chunk)]
        assert parser.done == ("Observation:" in written)
        folded = fold(events + parser.flush(is_cut=is_cut))
        assert whole in (None, folded)
        whole = folded
        assert not parser.unfinished_call
    assert whole == _calls("t", "py", written.strip() if read is None else read)


def test_other_tools_still_end_at_any_label() -> None:
    parser = ReActParser("", ("py", "f"), {"py"})
    parser.push("Action: f\nAction Input: {}\nThought:")
    assert parser.done


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


def _reply(text: str, *args: Any, **options: Any) -> ParsedReply:
    """The reply, having checked that every split of the text gives the same."""
    whole = _joined(_events([text], *args, **options))
    for chunks in [*([text[:i], text[i:]] for i in range(len(text) + 1)), list(text)]:
        assert _joined(_events(chunks, *args, **options)) == whole
    return fold(whole)


def _answer(content: str) -> ParsedReply:
    return ParsedReply(content, ())


def _calls(content: str | None, name: str, arguments: str = "{}") -> ParsedReply:
    return ParsedReply(content, (FunctionCall(name, arguments),))


# The published reader takes the last of several final answers; a stream cannot. See ReActParser.
SANE = {"Thought: t\nFinal Answer: one\nFinal Answer: two": "one\nFinal Answer: two"}


def test_published_readings(react_cases: dict[str, Any]) -> None:
    cases = react_cases["responses"]
    assert SANE.keys() <= {case["text"] for case in cases}
    for case in cases:
        call = case["function_call"]
        reply = _reply(case["text"], "", [call["name"]] if call else [])
        assert reply.calls == ((FunctionCall(call["name"], call["arguments"]),) if call else ())
        # Nothing said before a call is null on the wire, where the published server said "".
        assert (reply.content or "") == SANE.get(case["text"], case["content"])


# -- text that is the client's, to the letter

STEP = "Thought: t\nAction: f\nAction Input: {}\nObservation: 1\nThought: u\nFinal Answer: v\n"
TEXTS = [
    "",
    " \n",
    "\n a\n\n b \n",
    "Lab report\nObservation: it turned blue.\nConclusion: acid.",
    "Minutes\nAction: Bob calls.\nAction: Ann writes.",
    "Notes\nThought: be kind\nDone",
    f"So it looks:\n```\n{STEP}```\nClear?",
    f"{STEP}".replace("Thought", "thought", 1),
    f"Sure.\n{STEP}",
    "Action: go home\nAction Input: the key",
    "Action: f\nAction: f\nAction Input: {}",
    "Action: f \nAction Input: {}",
    "Action: f\nAction Inpu",
    "Thoug",
    *(
        f"{before}{label}{after}"
        for label in LABELS
        for before in ("a\n", "a\n\n", "a ")
        for after in ("", " b", "\nb\n")
    ),
    *(f"{label}{after}" for label in LABELS[1:] for after in ("", " b", "\nb\n")),
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("names", [(), NAMES])
def test_a_turn_that_is_no_scaffolding_is_text(text: str, names: tuple[str, ...]) -> None:
    assert _reply(text, "", names) == _answer(text)
    assert _reply(text, "", names, is_cut=True) == _answer(text)


@pytest.mark.parametrize("text", [*TEXTS, STEP, "Action: f\nAction Input: {}", "Thought: t", "Thought:"])
@pytest.mark.parametrize("names", [(), NAMES])
def test_an_answer_is_text(text: str, names: tuple[str, ...]) -> None:
    text = text.lstrip()
    assert _reply(f" {text}", ANSWERING, names) == _answer(text)
    assert _reply(text, f"{ANSWERING} so far ", names) == _answer(text)
    assert _reply(f"Thought: t\nFinal Answer: {text}", "", names) == _answer(text)


# -- scaffolding


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        # answers
        ("Thought: t\nFinal Answer:  a\n b\n", _answer("a\n b\n")),
        ("Thought:\nFinal Answer:42", _answer("42")),
        (" \nThought: t\nFinal Answer: 42", _answer("42")),
        ("Thought: t\nFinal Answer:", _answer("")),
        ("Thought: t\nFinal Answer: a\nThough", _answer("a\nThough")),
        ("Thought: t\nAction: none\nFinal Answer: a", _answer("a")),
        ("Thought: t\nAction Input: {}\nFinal Answer: a", _answer("a")),
        ("Thought: t\nAction: f\nThought: u\nFinal Answer: a", _answer("a")),
        # thoughts with nothing after them
        ("Thought:", _answer("")),
        ("Thought: t", _answer("t")),
        ("Thought: t\nActi", _answer("t\nActi")),
        ("Thought: grades:\nA", _answer("grades:\nA")),
        ("Thought: t\nObservation: r", _answer("t")),
        ("Thought: t\nAction Input: {}", _answer("t\nAction Input: {}")),
        ("Thought: Action: f", _answer("Action: f")),
        # actions that are none
        (" Thought: t\nAction: f", _answer(" Thought: t\nAction: f")),
        ("Thought: t\nAction: f\nActi", _answer("Thought: t\nAction: f\nActi")),
        ("Thought: t\nAction:\nAction Input: {}", _answer("t\nAction:\nAction Input: {}")),
        ("Thought: t\nAction: f\nObservation: r", _answer("t\nAction: f")),
        # calls
        ("Action: f\nAction Input: {}", _calls(None, "f")),
        (" \n\nAction: f\nAction Input: {}", _calls(None, "f")),
        ("Thought:\nAction: f\nAction Input:", _calls(None, "f")),
        ("Thought:t\nAction:f\nAction Input:x", _calls("t", "f", "x")),
        ("Thought: t\n\nAction: f\n\nAction Input: \n x\n\n", _calls("t", "f", "x")),
        ("Thought: t\nAction: f\njunk\nAction Input: x", _calls("t", "f", "x")),
        ("Thought: t\nAction: f\nThought: u\nAction: g\nAction Input: x", _calls("t\nAction: f\nThought: u", "g", "x")),
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
    ("opening", "text", "reply"),
    [
        ("Thought:", " t\nFinal Answer: a", _answer("a")),
        ("Thought:", " t\nAction: f\nAction Input: x", _calls("t", "f", "x")),
        ("Thought:", " just this", _answer("just this")),
        ("Thought: \nAction:", " f\nAction Input: x", _calls(None, "f", "x")),
        ("Thought: \nAction:", "", _answer("")),
        ("Thought: \nAction: f\nAction Input:", "", _calls(None, "f")),
        ("Thought: \nAction: f\nAction Input:", ' {"a": 1}\nObservation: 2', _calls(None, "f", '{"a": 1}')),
        (ANSWERING, " a\n", _answer("a\n")),
        (f"{ANSWERING} x", " a\n", _answer(" a\n")),
    ],
)
def test_readings_of_an_opened_turn(opening: str, text: str, reply: ParsedReply) -> None:
    assert _reply(text, opening) == reply


@pytest.mark.parametrize("text", ["Thought: t\nActi", "Thought: t\nAction:", "Thought: t\nAction: f\nAction Inp"])
def test_what_is_cut_off_before_its_arguments_is_the_thought(text: str) -> None:
    assert _reply(text, is_cut=True) == _answer("t")


def test_the_work_grows_with_the_length_of_a_reply() -> None:
    """Each character costs the same, whatever was held back before it: a whole run of white space at the beginning."""
    parser = ReActParser("", NAMES)
    space = "\n" * 300_000
    for start in range(len(space)):
        assert parser.push(space[start]) == []
    assert parser.push("a") == [Content(space + "a")]


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
ANY = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=14).map("".join)


@settings(max_examples=400)
@given(ANY, st.data(), st.sampled_from(["", "Thought:", "Thought: \nAction:", "Thought: \nAction: f\nAction Input:"]))
def test_any_chunks_are_read_as_the_whole_text(text: str, data: st.DataObject, initial: str) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert _joined(_events(chunks, initial)) == _joined(_events([text], initial))


@settings(max_examples=400)
@given(ANY)
def test_calls_are_well_formed(text: str) -> None:
    events = _joined(_events(list(text)))
    shape = "".join({CallStart: "s", CallArguments: "a", CallEnd: "e"}.get(type(event), "") for event in events)
    assert shape in ("", "sae")
    for event in events:
        if isinstance(event, CallStart):
            assert event.name == event.name.strip() != ""


# Words that are no scaffolding, in the order the model writes steps.
WORDS = st.text('abc {}":1\n', max_size=12)


@settings(max_examples=300)
@given(WORDS, WORDS, st.sampled_from(["f", "get_weather"]), st.booleans(), st.booleans())
def test_scaffolding_of_proper_replies_is_never_shown(
    thought: str, arguments: str, name: str, is_call: bool, has_more: bool
) -> None:
    step = f"\nAction: {name}\nAction Input: {arguments}" if is_call else f"\nFinal Answer: {arguments}"
    more = "\nObservation: r\nThought: u\nFinal Answer: v" if has_more and is_call else ""
    reply = fold(_events(list(f"Thought: {thought}{step}{more}")))
    assert (reply.content or "") == (thought.strip() if is_call else arguments.lstrip())
    assert reply.calls == ((FunctionCall(name, arguments.strip() or "{}"),) if is_call else ())
