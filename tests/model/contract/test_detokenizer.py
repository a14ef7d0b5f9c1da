"""model/contract/detokenizer.py: characters over several tokens, one byte a token at worst."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.contract.detokenizer import Detokenizer
from model.contract.tokenizer import Tokenizer

TEXT = "a é 你好 😀 👩‍👩‍👧 ﷽\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Tokens of one byte, and some of two, so that one text has several spellings."""
    ranks = {bytes([b]): b for b in range(256)}
    for token in (b"\xe4\xbd", b"\xa0\xe5", b"\x98\x80", b"a ", b" \xf0"):
        ranks[token] = len(ranks)
    return Tokenizer(ranks)


def _pieces(tokenizer: Tokenizer, token_ids: list[int], show_special_tokens: bool = False) -> list[str]:
    detokenizer = Detokenizer(tokenizer, show_special_tokens=show_special_tokens)
    return [*map(detokenizer.push, token_ids), detokenizer.flush()]


def test_no_character_is_ever_cut(tokenizer: Tokenizer) -> None:
    for token_ids in (list(TEXT.encode()), tokenizer.encode(TEXT)):
        pieces = _pieces(tokenizer, token_ids)
        assert "".join(pieces) == TEXT
        assert "\ufffd" not in "".join(pieces)
        assert pieces[-1] == ""


def test_each_character_comes_with_its_last_byte(tokenizer: Tokenizer) -> None:
    assert _pieces(tokenizer, list("é你😀".encode())) == ["", "é", "", "", "你", "", "", "", "😀", ""]


def test_every_cut_ends_in_a_replacement_character_or_cleanly(tokenizer: Tokenizer) -> None:
    token_ids = list(TEXT.encode())
    for end in range(len(token_ids) + 1):
        expected = bytes(token_ids[:end]).decode("utf-8", errors="replace")
        assert "".join(_pieces(tokenizer, token_ids[:end])) == expected


@settings(max_examples=300)
@given(st.lists(st.integers(0, 600), max_size=30), st.booleans())
def test_any_ids_are_read_as_the_tokenizer_reads_them(tokenizer: Tokenizer, token_ids: list[int], show: bool) -> None:
    pieces = _pieces(tokenizer, token_ids, show)
    assert "".join(pieces) == tokenizer.decode(token_ids, show_special_tokens=show)


def test_control_tokens_are_silent_or_named(tokenizer: Tokenizer) -> None:
    token_ids = [ord("a"), tokenizer.im_end_id, 10**6, ord("b")]
    assert _pieces(tokenizer, token_ids) == ["a", "", "", "b", ""]
    assert _pieces(tokenizer, token_ids, True) == ["a", "<|im_end|>", "", "b", ""]


def test_a_shown_control_token_ends_an_unfinished_character(tokenizer: Tokenizer) -> None:
    token_ids = [0xE4, tokenizer.im_end_id, 0xBD]
    assert _pieces(tokenizer, token_ids, True) == ["", "\ufffd<|im_end|>", "\ufffd", ""]


def test_flush_makes_it_new(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push(0xF0), detokenizer.push(0x9F)] == ["", ""]
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""
    assert detokenizer.push(ord("a")) == "a"
