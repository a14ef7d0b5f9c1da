"""model/contract/files/vocabulary.py: expanded vocabularies, with the example of the published note on tokenization."""

from __future__ import annotations

import base64
import importlib.util
import json
import logging
import shutil
from pathlib import Path

import pytest

from model.contract.errors import CheckpointError
from model.contract.grammar_compiler import compile_grammar, make_ll_tokenizer
from model.contract.tokenizer import IM_END, Tokenizer
from server.grammars.worker import pack_ranks, unpack_ranks

# What the published add_merges.py gives for the note's six words, in its order, from id 151851 on.
NOTE = ("一只猫", "只猫", "是一只猫", "我是一只猫", "你是一只猫", "他是一只猫")
NOTE_FILE = (
    "5LiA5Y+q54yr 151851\n5Y+q54yr 151852\n5piv5LiA5Y+q54yr 151853\n"
    "5oiR5piv5LiA5Y+q54yr 151854\n5L2g5piv5LiA5Y+q54yr 151855\n5LuW5piv5LiA5Y+q54yr 151856\n"
)


def lines(*tokens: bytes, start: int) -> str:
    return "".join(f"{base64.b64encode(token).decode()} {start + i}\n" for i, token in enumerate(tokens))


BYTES = lines(*(bytes([b]) for b in range(256)), start=0)


def _folder(folder: Path, main: str, extra: str | None = None, *, names: object = "qwen_extra.tiktoken") -> Path:
    (folder / "qwen.tiktoken").write_text(main)
    if extra is not None:
        (folder / "qwen_extra.tiktoken").write_text(extra)
    (folder / "tokenizer_config.json").write_text(json.dumps({"extra_vocab_file": names} if names else {}))
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the published vocabulary."""
    spec = importlib.util.find_spec("dashscope")
    assert spec is not None and spec.submodule_search_locations
    folder = tmp_path_factory.mktemp("published")
    shutil.copy(Path(spec.submodule_search_locations[0]) / "resources" / "qwen.tiktoken", folder)
    return folder


@pytest.fixture(scope="module", params=["a file of its own", "the same file"])
def expanded(request: pytest.FixtureRequest, published: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The note's expanded vocabulary, as it is used and as the published save_vocabulary writes it."""
    main = (published / "qwen.tiktoken").read_text()
    folder = tmp_path_factory.mktemp("expanded")
    if request.param == "the same file":
        # The key stays behind in tokenizer_config.json, the file does not.
        return Tokenizer.from_folder(_folder(folder, main + NOTE_FILE, names="/home/me/qwen_extra.tiktoken"))
    return Tokenizer.from_folder(_folder(folder, main, NOTE_FILE))


def test_the_example_of_the_published_note(expanded: Tokenizer) -> None:
    assert lines(*(word.encode() for word in NOTE), start=151851) == NOTE_FILE
    for number, word in enumerate(NOTE):
        assert expanded.encode(word) == [151851 + number]
        assert expanded.decode([151851 + number]) == word
        assert not expanded.is_special(151851 + number)
    assert expanded.num_tokens == expanded.num_rows_needed == 151857
    assert expanded.encode("他是一只猫，两只猫") == [151856, 3837, 110397, 100472]  # 两只 was there before 只猫


def test_control_tokens_stay_where_they_are(expanded: Tokenizer) -> None:
    assert (expanded.endoftext_id, expanded.im_start_id, expanded.im_end_id) == (151643, 151644, 151645)
    assert expanded.special_id("<|extra_204|>") == 151850
    assert expanded.is_special(151850) and expanded.is_special(151857)
    ids = expanded.encode_with_special_tokens("我是一只猫<|im_end|>")
    assert ids == [151854, 151645]
    assert expanded.decode(ids) == "我是一只猫"
    assert expanded.decode(ids, show_special_tokens=True) == "我是一只猫<|im_end|>"
    assert expanded.encode(IM_END) == expanded.encode("<|im_end|>") != [151645]


def test_text_without_new_words_has_the_published_ids(expanded: Tokenizer, published: Path) -> None:
    plain = Tokenizer.from_folder(published)
    assert plain.encode("我是一只猫") == [35946, 99639, 91680, 100472]
    for text in ("我有一只狗", "Hello, world!", 'print("<|endoftext|>")'):
        assert expanded.encode(text) == plain.encode(text)


def test_grammars_know_new_tokens(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(_folder(tmp_path, BYTES, lines(b"ab", b"abc", start=464)))
    assert tokenizer.encode("abcab") == [465, 464]
    matcher = compile_grammar(make_ll_tokenizer(tokenizer, 512), "%llguidance {}\nstart: /[abc]{5}/")
    mask = matcher.compute_bitmask()
    assert {i for i in range(512) if mask[i // 8] >> i % 8 & 1} >= {464, 465}
    assert matcher.consume_tokens([465, 464]) and matcher.is_stopped()


def test_the_grammar_worker_gets_new_tokens_too(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(_folder(tmp_path, BYTES, lines(b"ab", start=470)))
    assert unpack_ranks(pack_ranks(tokenizer)) == {bytes([b]): b for b in range(256)} | {b"ab": 470}


def test_a_small_vocabulary_is_expanded_alike(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(_folder(tmp_path, BYTES + lines(b"ab", b"abc", start=464)))
    assert tokenizer.endoftext_id == 256 and tokenizer.num_tokens == 466
    assert tokenizer.decode(tokenizer.encode("xabcab")) == "xabcab"


def test_what_the_published_tokenizer_leaves_out_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    extra = lines(b"a", start=464) + lines(b"ab", start=256) + lines(b"cd", start=466)
    with caplog.at_level(logging.WARNING):
        tokenizer = Tokenizer.from_folder(_folder(tmp_path, BYTES, extra))
    assert tokenizer.encode("ab") == [97, 98]
    assert tokenizer.encode("cd") == [466]
    assert "2 of its tokens" in caplog.text and "the first is 464" in caplog.text


@pytest.mark.parametrize("names", [None, ""])
def test_a_file_that_nothing_names_is_told(names: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = _folder(tmp_path, BYTES, lines(b"ab", start=464), names=names)
    (folder / "tokenizer_config.json").write_text(json.dumps({"extra_vocab_file": names}))
    with caplog.at_level(logging.WARNING):
        tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.num_tokens == 464
    assert "is not read" in caplog.text and '"extra_vocab_file": "qwen_extra.tiktoken"' in caplog.text


def test_a_named_file_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"qwen_extra\.tiktoken: no such file, but tokenizer_config"):
        Tokenizer.from_folder(_folder(tmp_path, BYTES))


def test_added_ranks_in_the_control_tokens_places_are_refused(published: Path, tmp_path: Path) -> None:
    main = (published / "qwen.tiktoken").read_text()
    with pytest.raises(CheckpointError, match="belong to the control tokens; number added tokens from 151851"):
        Tokenizer.from_folder(_folder(tmp_path, main + lines("只猫".encode(), start=151643), names=None))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (lines(b"ab", start=464) + lines(b"cd", start=464), "each once"),
        ("YWI=\n", "line 1"),
        ("= 464\n", "line 1"),
        ("YWI= 1000000000000\n", "line 1 has the rank"),
    ],
)
def test_a_damaged_extra_file_is_named(extra: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        Tokenizer.from_folder(_folder(tmp_path, BYTES, extra))
    assert "qwen_extra.tiktoken" in str(error.value)
