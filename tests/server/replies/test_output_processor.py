"""Text of a choice: stops, broken characters, and log-probabilities that stay with their text."""

from __future__ import annotations

import itertools

import pytest

from model.contract.messages import SequenceOutput
from prompts.stop import StopStrings
from server.replies.output_processor import ChoiceDelta, ChoiceProcessor
from tests.support.vocabulary import byte_tokenizer, score

TOKENIZER = byte_tokenizer(b"foo\n", b"a\xe4\xb8", b"\xad!b")


def outputs(
    chunks: list[list[int]], finish: str | None = "length", stop_token_id: int | None = None
) -> list[SequenceOutput]:
    result = []
    for number, ids in enumerate(chunks):
        last = number == len(chunks) - 1
        result.append(
            SequenceOutput(
                1,
                ids,
                finish_reason=finish if last else None,
                stop_token_id=stop_token_id if last else None,
                logprobs=[score(i) for i in ids],
            )
        )
    return result


def run(processor: ChoiceProcessor, steps: list[SequenceOutput]) -> ChoiceDelta:
    """All deltas as one, checking that nothing comes after the end."""
    total: ChoiceDelta | None = None
    for step in steps:
        if processor.finished:
            break
        delta = processor.push(step)
        if total is None:
            total = delta
        else:
            total.extend(delta)
    assert total is not None
    return total


def splits(ids: list[int]) -> list[list[list[int]]]:
    """Every way to hand the ids over in steps (all of them for short lists)."""
    cuts = range(1, len(ids))
    chosen = itertools.chain.from_iterable(itertools.combinations(cuts, k) for k in range(min(len(ids), 4)))
    return [[ids[a:b] for a, b in itertools.pairwise((0, *cut, len(ids)))] for cut in chosen]


def shown(delta: ChoiceDelta) -> bytes:
    return b"".join(entry.shown or b"" for entry in delta.logprobs or [])


@pytest.mark.parametrize(
    ("text", "stops", "expected", "matched"),
    [
        ("hello world", ("o w",), "hell", "o w"),
        ("hello world", ("xyz",), "hello world", None),
        ("aab", ("ab",), "a", "ab"),
        ("STO", ("STOP",), "STO", None),
        ("xSTOPy", ("STOP", "OPy"), "x", "STOP"),
        ("中文，停止吧", ("停",), "中文，", "停"),
        ("🙂🙂", ("🙂",), "", "🙂"),
    ],
)
def test_stop_strings_in_every_split(text: str, stops: tuple[str, ...], expected: str, matched: str | None) -> None:
    ids = list(text.encode())
    for chunks in splits(ids):
        delta = run(ChoiceProcessor(0, TOKENIZER, stops=StopStrings(stops), with_logprobs=True), outputs(chunks))
        assert delta.text == expected
        assert delta.stop_reason == matched
        assert delta.finish_reason == ("stop" if matched else "length")
        assert shown(delta) == expected.encode()


def test_what_is_held_back_is_no_more_than_needed() -> None:
    processor = ChoiceProcessor(0, TOKENIZER, stops=StopStrings(["\nObservation:"]), with_logprobs=True)
    seen = [processor.push(SequenceOutput(1, [b], logprobs=[score(b)])) for b in b"ab\nObx"]
    assert [d.text for d in seen] == ["a", "b", "", "", "", "\nObx"]
    assert [len(d.logprobs or []) for d in seen] == [1, 1, 0, 0, 0, 4]


def test_the_stop_string_can_be_included() -> None:
    stops = StopStrings(["ll"])
    processor = ChoiceProcessor(0, TOKENIZER, stops=stops, include_stop_str_in_output=True, with_logprobs=True)
    delta = run(processor, outputs([list(b"hello")]))
    assert (delta.text, shown(delta), delta.stop_reason) == ("hell", b"hell", "ll")


def test_a_token_cut_by_a_stop_string_keeps_the_bytes_that_are_shown() -> None:
    foo_newline = 256
    processor = ChoiceProcessor(0, TOKENIZER, stops=StopStrings(["\n"]), with_logprobs=True)
    delta = run(processor, outputs([[97, foo_newline, 98]]))
    assert delta.text == "afoo"
    assert [entry.shown for entry in delta.logprobs or []] == [b"a", b"foo"]
    assert delta.token_ids == [97, foo_newline]


def test_a_token_that_ends_inside_a_character_is_cut_at_the_right_byte() -> None:
    first, second = 257, 258  # "a" + two bytes of a character; its last byte + "!b"
    processor = ChoiceProcessor(0, TOKENIZER, stops=StopStrings(["!"]), with_logprobs=True)
    delta = run(processor, outputs([[first], [second]]))
    assert delta.text == "a中"
    assert [entry.shown for entry in delta.logprobs or []] == [b"a\xe4\xb8", b"\xad"]


@pytest.mark.parametrize("data", [b"\xe4\xb8", b"a\xe4\xb8b", b"\xff\xfe", b"\xf0\x9f\x99", b"\xe4\xe4\xb8\xad\xe4"])
def test_broken_characters_become_replacements_and_keep_their_tokens(data: bytes) -> None:
    for chunks in splits(list(data)):
        delta = run(ChoiceProcessor(0, TOKENIZER, with_logprobs=True), outputs(chunks))
        assert delta.text == data.decode(errors="replace")
        assert shown(delta) == data


def test_no_character_is_cut_between_deltas() -> None:
    processor = ChoiceProcessor(0, TOKENIZER)
    texts = [processor.push(SequenceOutput(1, [b])).text for b in "é🙂".encode()]
    assert texts == ["", "é", "", "", "", "🙂"]


def test_the_ending_token_is_not_shown_but_counted() -> None:
    eos = TOKENIZER.im_end_id
    delta = run(
        ChoiceProcessor(0, TOKENIZER, with_logprobs=True), outputs([list(b"ok"), [eos]], "stop", stop_token_id=eos)
    )
    assert (delta.text, delta.finish_reason, delta.stop_reason) == ("ok", "stop", None)
    assert delta.token_ids == [*b"ok", eos]
    assert [entry.shown for entry in delta.logprobs or []] == [b"o", b"k", None]


def test_an_ordinary_stop_token_is_hidden_unless_asked_for() -> None:
    for include, expected in ((False, "ab"), (True, "abc")):
        processor = ChoiceProcessor(
            0, TOKENIZER, include_stop_str_in_output=include, stop_token_ids=(99,), with_logprobs=True
        )
        delta = run(processor, outputs([list(b"abc")], "stop", stop_token_id=99))
        assert (delta.text, delta.stop_reason, shown(delta)) == (expected, 99, expected.encode())


def test_stop_strings_wait_for_min_tokens() -> None:
    processor = ChoiceProcessor(0, TOKENIZER, stops=StopStrings(["a"]), min_tokens=3)
    delta = run(processor, outputs([list(b"aaaba")]))
    assert (delta.text, processor.num_tokens) == ("aaab", 5)


def test_ids_without_a_token_add_nothing_to_the_text_but_are_reported() -> None:
    padding = TOKENIZER.num_tokens + 5
    delta = run(ChoiceProcessor(0, TOKENIZER, with_logprobs=True), outputs([[97, padding, 98]]))
    assert delta.text == "ab"
    assert [entry.token_id for entry in delta.logprobs or []] == [97, padding, 98]


def test_tokens_after_a_stop_string_do_not_count() -> None:
    processor = ChoiceProcessor(0, TOKENIZER, stops=StopStrings(["b"]))
    delta = run(processor, outputs([list(b"abcd")]))
    assert processor.num_tokens == 2
    assert delta.token_ids == list(b"ab")
