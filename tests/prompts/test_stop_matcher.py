"""prompts/stop.py against a plain reading of the whole text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompts.stop import StopMatcher, StopStrings

# Few letters and short strings, so that stop strings overlap each other and themselves.
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=5)
CHUNKS = st.lists(st.text("ab\nc", max_size=6), max_size=12)


def _whole(text: str, stops: list[str], include_stop: bool = False) -> tuple[str, str | None]:
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end if include_stop else end - len(stop)], stop
    return text, None


def _streamed(chunks: list[str], stops: list[str], include_stop: bool = False) -> tuple[str, str | None]:
    matcher = StopMatcher(StopStrings(stops), include_stop)
    text = "".join(matcher.push(chunk) for chunk in chunks) + matcher.flush()
    return text, matcher.matched


@settings(max_examples=400)
@given(STOPS, CHUNKS, st.booleans())
def test_any_chunks_are_read_as_the_whole_text(stops: list[str], chunks: list[str], include_stop: bool) -> None:
    assert _streamed(chunks, stops, include_stop) == _whole("".join(chunks), stops, include_stop)


@settings(max_examples=400)
@given(STOPS, CHUNKS)
def test_only_the_longest_beginning_of_a_stop_string_is_held_back(stops: list[str], chunks: list[str]) -> None:
    matcher = StopMatcher(StopStrings(stops))
    text = shown = ""
    for chunk in chunks:
        text += chunk
        shown += matcher.push(chunk)
        if matcher.matched:
            break
        beginnings = {stop[:n] for stop in stops for n in range(len(stop))} | {""}
        longest = max((b for b in beginnings if text.endswith(b)), key=len)
        assert matcher.held == longest
        assert shown + longest == text


@settings(max_examples=100)
@given(STOPS, CHUNKS)
def test_with_the_stop_string_included_nothing_is_held_back(stops: list[str], chunks: list[str]) -> None:
    matcher = StopMatcher(StopStrings(stops), include_stop=True)
    for chunk in chunks:
        shown = matcher.push(chunk)
        if matcher.matched:
            break
        assert shown == chunk


CASES = [
    ("hello\nObservation: x", ["\nObservation:"], "hello", "\nObservation:"),
    ("one two", ["two"], "one ", "two"),
    ("aaab", ["aab"], "a", "aab"),
    ("abcd", ["bcd", "bc"], "a", "bc"),
    ("abcd", ["cd", "abcd", "d"], "", "abcd"),
    ("no stop", ["stops"], "no stop", None),
    ("text", [], "text", None),
    ("结束了吗", ["束了"], "结", "束了"),
]


@pytest.mark.parametrize(("text", "stops", "shown", "matched"), CASES)
def test_every_split_of_every_case(text: str, stops: list[str], shown: str, matched: str | None) -> None:
    splits = [[text[:i], text[i:]] for i in range(len(text) + 1)]
    for chunks in [*splits, list(text)]:
        assert _streamed(chunks, stops) == (shown, matched)


def test_everything_after_a_match_is_swallowed() -> None:
    matcher = StopMatcher(StopStrings(["."]))
    assert matcher.push("a.b") == "a"
    assert matcher.push("c") == ""
    assert matcher.flush() == ""
    assert matcher.matched == "."


def test_flush_gives_back_what_was_held_in_vain() -> None:
    matcher = StopMatcher(StopStrings(["stop"]))
    assert matcher.push("do not sto") == "do not "
    assert matcher.flush() == "sto"
    assert matcher.flush() == ""
    assert matcher.matched is None


@pytest.mark.parametrize("stops", [[""], ["a", ""]])
def test_an_empty_stop_string_is_refused(stops: list[str]) -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(StopStrings(stops))


def test_long_stop_strings_cost_no_more_than_the_text() -> None:
    # Each stop nearly matches at every character; trying them one by one would take minutes.
    stops = ["a" * 2000 + chr(ord("b") + i) for i in range(16)]
    matcher = StopMatcher(StopStrings(stops))
    started = time.process_time()
    shown = sum(len(matcher.push("a")) for _ in range(100_000))
    assert shown == 98_000
    assert time.process_time() - started < 5
