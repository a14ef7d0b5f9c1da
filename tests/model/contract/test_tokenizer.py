"""model/contract/tokenizer.py against the published tokenizer's ids, with the real vocabulary."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.contract import tokenizer as tokenizer_module
from model.contract.errors import CheckpointError
from model.contract.files.vocabulary import read_ranks
from model.contract.tokenizer import Tokenizer
from tests.support.paths import TEXTS

CASES = json.loads((TEXTS / "tokenizer.json").read_text())["cases"]
MILLION = 1_000_000


def _real_vocabulary() -> Path:
    spec = importlib.util.find_spec("dashscope")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(read_ranks(_real_vocabulary()))


@pytest.fixture(scope="module")
def byte_tokenizer() -> Tokenizer:
    return Tokenizer({bytes([b]): b for b in range(256)})


def test_published_ids(tokenizer: Tokenizer) -> None:
    for case in CASES:
        assert tokenizer.encode(case["text"]) == case["ids"]
        assert tokenizer.encode_with_special_tokens(case["text"]) == case["ids_with_special_tokens"]
        assert tokenizer.decode(case["ids"]) == case["decoded"]
    assert any(case["ids"] != case["ids_with_special_tokens"] for case in CASES)


def test_special_tokens_follow_the_ranks(tokenizer: Tokenizer) -> None:
    assert (tokenizer.num_ranks, tokenizer.num_tokens) == (151643, 151851)
    assert (tokenizer.endoftext_id, tokenizer.im_start_id, tokenizer.im_end_id) == (151643, 151644, 151645)
    assert tokenizer.special_id("<|extra_0|>") == 151646
    assert tokenizer.special_id("<|extra_204|>") == 151850
    with pytest.raises(KeyError):
        tokenizer.special_id("<|extra_205|>")


def test_control_tokens_are_shown_only_when_asked_for(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_with_special_tokens("a<|im_end|>b")
    assert tokenizer.decode(ids) == "ab"
    assert tokenizer.decode(ids, show_special_tokens=True) == "a<|im_end|>b"
    assert tokenizer.token_name(tokenizer.im_end_id) == "<|im_end|>"
    assert [tokenizer.is_special(i) for i in ids] == [False, True, False]


def test_characters_that_lie_in_two_of_the_parts(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [*tokenizer.encode("x🜁y"), tokenizer.im_end_id]
    assert len(ids) > 4  # the sign takes several tokens
    monkeypatch.setattr(tokenizer_module, "_DECODED_AT_ONCE", 1)
    assert tokenizer.decode(ids) == "x🜁y"
    assert tokenizer.decode(ids, show_special_tokens=True) == "x🜁y<|im_end|>"


@pytest.mark.parametrize("padding", [151851, 151935, 152063, 10**9])
def test_padding_rows_decode_to_nothing(padding: int, tokenizer: Tokenizer) -> None:
    token = tokenizer.encode("a")[0]
    for show in (False, True):
        assert tokenizer.decode([token, padding, token], show_special_tokens=show) == "aa"
    assert tokenizer.token_bytes(padding) == b""
    assert tokenizer.token_name(padding) == ""
    assert tokenizer.is_special(padding)


def test_broken_characters_become_replacement_characters(tokenizer: Tokenizer) -> None:
    ids = [i for i in range(256) if tokenizer.token_bytes(i) == b"\xe4"]
    assert len(ids) == 1
    assert tokenizer.decode(ids) == tokenizer.token_name(ids[0]) == "\ufffd"


@settings(max_examples=300)
@given(st.text())
def test_text_comes_back_normalised(byte_tokenizer: Tokenizer, text: str) -> None:
    assert byte_tokenizer.decode(byte_tokenizer.encode(text)) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize(
    ("text", "decoded"), [("a\ud800b", "a\ufffdb"), ("\udc00", "\ufffd"), ("\ud83d\ude00", "\U0001f600")]
)
def test_surrogates_from_json_are_no_obstacle(text: str, decoded: str, tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == decoded
    assert tokenizer.decode(tokenizer.encode_with_special_tokens(text)) == decoded


# -- long texts


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a" * MILLION, id="a letter"),
        pytest.param("中" * (MILLION // 3), id="a Chinese letter"),
        pytest.param("^" * MILLION, id="a sign"),
        pytest.param(" " * MILLION, id="spaces"),
        pytest.param("x" + " " * (MILLION + 2) + "x", id="spaces in between"),
        pytest.param("\t\u3000" * (MILLION // 2 + 1), id="unusual whitespace"),
        pytest.param("\n" * MILLION, id="newlines"),
        pytest.param(" \n" * (MILLION // 2) + " " * MILLION, id="newlines, then spaces"),
        pytest.param("a" + "\u0301" * (MILLION // 2), id="one combining mark"),
        pytest.param("a" + "\u0301\u0316" * (MILLION // 4), id="combining marks to be sorted"),
        pytest.param("\u0f73" * (MILLION // 3), id="letters that fall apart into marks"),
    ],
)
def test_a_megabyte_without_a_break(text: str, tokenizer: Tokenizer) -> None:
    started = time.perf_counter()
    ids = tokenizer.encode(text)
    # It takes well below a second. What this guards against is a panic, or takes minutes.
    assert time.perf_counter() - started < 20
    if tokenizer_module._marks().isdisjoint(text):
        assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_ordinary_long_text_is_never_cut(tokenizer: Tokenizer) -> None:
    text = "The quick brown fox; 敏捷的狐狸.\n\n\t\tdef f(x):  return '1234'\u0301  \n" * 10_000
    assert tokenizer.encode(text) == tokenizer.encoding.encode_ordinary(unicodedata.normalize("NFC", text))


def test_special_tokens_in_long_text_stay_whole(tokenizer: Tokenizer) -> None:
    text = ("x" * 1000 + "<|im_end|>") * 1000 + " " * MILLION + "<|im_end|>"
    ids = tokenizer.encode_with_special_tokens(text)
    assert ids.count(tokenizer.im_end_id) == 1001
    assert tokenizer.decode(ids, show_special_tokens=True) == text


@settings(max_examples=300)
@given(st.text(" \t\u3000\x1c\nab1!", max_size=40))
def test_cutting_long_whitespace_loses_nothing(text: str) -> None:
    pieces = tokenizer_module._cut(text, re.compile(r"[^\S\r\n\x1c-\x1f]+"), 3)
    assert "".join(pieces) == text
    for piece in pieces[:-1]:
        assert piece[-1:].isspace() and piece[-1] not in "\r\n"


def test_runs_of_marks_that_occur_in_writing_are_normalised_whole(tokenizer: Tokenizer) -> None:
    text = "x" * 300 + "a" + "\u0301\u0316" * 128
    assert tokenizer_module._clean(text) == unicodedata.normalize("NFC", text)


def test_longer_runs_of_marks_keep_all_their_marks() -> None:
    text = "a" + "\u0301\u0316" * 1000
    cleaned = tokenizer_module._clean(text)
    assert unicodedata.normalize("NFC", cleaned) == unicodedata.normalize("NFC", text)


# -- the id lists of the published note on tokenization, and of the notebook beside it


def test_the_published_note_s_id_lists(tokenizer: Tokenizer) -> None:
    plain = [1350, 9639, 91, 8691, 723, 427, 91, 82598]
    assert tokenizer.encode('print("<|endoftext|>")') == plain
    assert tokenizer.encode_with_special_tokens('print("<|endoftext|>")', ()) == plain
    assert tokenizer.encode_with_special_tokens('print("<|endoftext|>")') == [1350, 445, 151643, 899]
    text = 'print("<|extra_0|>")<|endoftext|>'
    ids = [1350, 9639, 91, 15460, 62, 15, 91, 82598, 151643]
    assert tokenizer.encode_with_special_tokens(text, {"<|endoftext|>"}) == ids
    assert tokenizer.encode_with_special_tokens("print('<|endoftext|>')<|endoftext|>") == [
        *(1350, 492, 151643, 863, 151643)
    ]
    assert tokenizer.encode("print('<|endoftext|>')") == [1350, 11146, 91, 8691, 723, 427, 91, 79865]
    text = "<|im_start|>print('<|extra_0|>')<|im_end|>"
    ids = [151644, 1350, 11146, 91, 15460, 62, 15, 91, 79865, 151645]
    assert tokenizer.encode_with_special_tokens(text, {"<|im_start|>", "<|im_end|>"}) == ids
    assert tokenizer.encode_with_special_tokens(text) == [151644, 1350, 492, 151646, 863, 151645]
    ids = tokenizer.encode_with_special_tokens("<|im_start|>print('我是一只猫<|extra_0|>')\n#喵喵喵<|im_end|>")
    assert [tokenizer.token_name(i) for i in ids] == [
        *(
            "<|im_start|>",
            "print",
            "('",
            "我",
            "是一",
            "只",
            "猫",
            "<|extra_0|>",
            "')\n",
            "#",
            "喵",
            "喵",
            "喵",
            "<|im_end|>",
        )
    ]


def test_the_published_note_on_broken_characters(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_bytes(i) for i in (51461, 117)] == [b" \xe6\xa0", b"\xb9"]
    assert tokenizer.decode([51461]) == " \ufffd"
    assert tokenizer.decode([51461, 117]) == " 根"
    assert tokenizer.decode([51461], errors="ignore") == " "
    with pytest.raises(UnicodeDecodeError):
        tokenizer.decode([51461], errors="strict")
    words = {"Panda": [b"P", b"anda"], " Panda": [b" Panda"], "Pandas": [b"P", b"andas"], " Pandas": [b" Pand", b"as"]}
    for text, pieces in words.items():
        assert [tokenizer.token_bytes(i) for i in tokenizer.encode(text)] == pieces


# -- vocabulary files


def _line(token: bytes, rank: int) -> bytes:
    return base64.b64encode(token) + b" %d\n" % rank


BYTES = b"".join(_line(bytes([b]), b) for b in range(256))


def test_a_small_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "qwen.tiktoken").write_bytes(BYTES + b"\n" + _line(b"ab", 256))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode("abc") == [256, ord("c")]
    assert (tokenizer.num_ranks, tokenizer.endoftext_id, tokenizer.num_tokens) == (257, 257, 257 + 208)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated or damaged"),
        (BYTES + b"YWI=\n", "line 257"),
        (BYTES + b"YWI= 256 1\n", "line 257"),
        (BYTES + b"YWI= x\n", "line 257"),
        (BYTES + b"Y!I= 256\n", "line 257"),
        (BYTES + b"YWI 256\n", "line 257"),
        (BYTES + b"\xff\xfe 256\n", "line 257"),
        (BYTES + _line(b"ab", 257), "ranks must be 0 to n-1"),
        (BYTES + _line(b"ab", -1), "ranks must be 0 to n-1"),
        (BYTES + _line(b"ab", 7), "ranks must be 0 to n-1"),
        (BYTES + _line(b"a", 256), "ranks must be 0 to n-1"),
        (BYTES[: len(BYTES) // 2], "line 135"),
        (b"".join(_line(bytes([b]), b + 1) for b in range(256)), "truncated or damaged"),
        (b"".join(_line(bytes([b]), b) for b in range(255)), "single bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "line 1"),
    ],
)
def test_a_damaged_vocabulary_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "qwen.tiktoken").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        Tokenizer.from_folder(tmp_path)
    assert "qwen.tiktoken" in str(error.value)


def test_a_missing_vocabulary_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read the vocabulary"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "qwen.tiktoken").mkdir()
    with pytest.raises(CheckpointError, match="a Qwen checkpoint needs"):
        Tokenizer.from_folder(tmp_path)
