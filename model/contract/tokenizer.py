"""Text to token ids and back, for `qwen.tiktoken` vocabularies.

A wrapper around tiktoken with this family's pattern and special tokens. Two habits keep user text
harmless: `encode` never yields a control token, whatever characters the text holds, and ids without
a token (the padding rows of the output layer) decode to nothing instead of failing.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path

import tiktoken

from model.contract.files.vocabulary import CONTROL_NAMES, NUM_CONTROL_TOKENS, first_gap, read_vocabulary
from model.contract.gguf.file import is_gguf
from model.contract.gguf.vocabulary import gguf_ranks

# The published pattern: at most one digit a token, contractions, words with one leading non-letter.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

ENDOFTEXT, IM_START, IM_END = CONTROL_NAMES

# `\s+(?!\S)` in the pattern makes the matcher remember every step of a run of whitespace without newlines, and it
# gives up (a panic, not an exception) at a million. Longer runs are cut every so many characters. Nothing else
# needs cutting: other runs of any length are matched without memory.
_MAX_WHITESPACE_RUN = 1 << 19
# The matcher's whitespace: Python counts the four separators \x1c to \x1f too. (Runs of any noteworthy length: a
# higher bound would make the search slower, for it tries a run that is too short from each of its characters.)
_WHITESPACE_RUN = re.compile(r"[^\S\r\n\x1c-\x1f]{16,}")

# Normalisation sorts each run of combining marks in quadratic time while it holds the interpreter: a megabyte of
# them would stop the server for half an hour. Runs longer than any writing needs are sorted in parts.
_MAX_MARKS_RUN = 256
_FIRST_CODE_POINT_WITHOUT_MARKS = 0x20000

# Ids whose bytes are joined in one go, in some milliseconds.
_DECODED_AT_ONCE = 1 << 15


class Tokenizer:
    """Encodes and decodes one checkpoint's vocabulary.

    Args:
        ranks: token bytes -> id: ids from 0 without gaps, and perhaps more behind the control tokens.

    Attributes:
        num_ranks: how many ids come before the control tokens.
        num_tokens: one more than the largest id that has a token.
        num_rows_needed: the fewest rows of an embedding that holds all text and the control tokens of chats.
        longest_token_bytes: length of the longest token, names of special ones included.
    """

    def __init__(self, ranks: dict[bytes, int]) -> None:
        self.num_ranks = first_gap(ranks)
        names = [*CONTROL_NAMES, *(f"<|extra_{i}|>" for i in range(NUM_CONTROL_TOKENS - len(CONTROL_NAMES)))]
        self._special_ids = {name: self.num_ranks + i for i, name in enumerate(names)}
        self._special_names = {token_id: name for name, token_id in self._special_ids.items()}
        self.num_tokens = max(self.num_ranks + len(names), max(ranks.values(), default=0) + 1)
        self.endoftext_id = self._special_ids[ENDOFTEXT]
        self.im_start_id = self._special_ids[IM_START]
        self.im_end_id = self._special_ids[IM_END]
        self.num_rows_needed = max(self.im_end_id, *ranks.values()) + 1
        self.longest_token_bytes = max(map(len, [*ranks, *names]))
        self._bytes: list[bytes] = [b""] * self.num_tokens
        for token, token_id in ranks.items():
            self._bytes[token_id] = token
        self._texts: dict[int, str | None] = {}  # filled as they are asked for
        self._encoding = tiktoken.Encoding(
            "qwen", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=self._special_ids
        )

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Reads the vocabulary of a checkpoint folder, or of a GGUF file.

        Raises:
            CheckpointError: a file is missing or malformed.
        """
        folder = Path(folder)
        return cls(gguf_ranks(folder) if is_gguf(folder) else read_vocabulary(folder))

    @property
    def encoding(self) -> tiktoken.Encoding:
        """The underlying tiktoken encoding (constrained decoding is built from it)."""
        return self._encoding

    def encode(self, text: str) -> list[int]:
        """Encodes text as ordinary text: `<|im_end|>` in it becomes the characters, not the control token."""
        return [i for piece in _pieces(_clean(text)) for i in self._encoding.encode_ordinary(piece)]

    @property
    def special_names(self) -> frozenset[str]:
        """Names of all control tokens."""
        return frozenset(self._special_ids)

    def encode_with_special_tokens(self, text: str, names: Collection[str] | None = None) -> list[int]:
        """Encodes text in which the names of special tokens stand for the tokens (trusted text only).

        Args:
            text: what a template has written.
            names: the special tokens that are recognised; other names are ordinary text. None recognises all.
        """
        allowed = set(self.special_names if names is None else names)
        encode = self._encoding.encode
        return [
            token_id
            for piece in _pieces(_clean(text))
            for token_id in encode(piece, allowed_special=allowed, disallowed_special=())
        ]

    def special_id(self, name: str) -> int:
        """Returns the id of a special token such as `<|im_start|>`; KeyError if there is none."""
        return self._special_ids[name]

    def is_special(self, token_id: int) -> bool:
        """Whether the id is a control token or has no token at all."""
        return not self.token_bytes(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """The token's bytes of text; empty for control tokens and for ids that have no token."""
        return self._bytes[token_id] if 0 <= token_id < self.num_tokens else b""

    def token_text(self, token_id: int) -> str | None:
        """The token's text, empty for control tokens; None where its bytes are not whole characters."""
        try:
            return self._texts[token_id]
        except KeyError:
            try:
                text = self.token_bytes(token_id).decode("utf-8")
            except UnicodeDecodeError:
                text = None
            self._texts[token_id] = text
            return text

    def token_name(self, token_id: int) -> str:
        """Shows the token to people: its text (U+FFFD for partial characters) or a control token's name."""
        return self._special_names.get(token_id) or self.token_bytes(token_id).decode("utf-8", errors="replace")

    def decode(self, token_ids: Sequence[int], *, show_special_tokens: bool = False, errors: str = "replace") -> str:
        """Joins the tokens' bytes and reads them as UTF-8.

        Args:
            token_ids: may hold control tokens and padding rows.
            show_special_tokens: write control tokens by name instead of dropping them.
            errors: treatment of broken characters, as in `bytes.decode`; "replace" makes them U+FFFD.

        Raises:
            UnicodeDecodeError: there is a broken character, and errors is "strict".
        """
        names = {i: name.encode() for i, name in self._special_names.items()} if show_special_tokens else {}

        def joined(ids: Sequence[int]) -> bytes:
            return b"".join([names.get(i) or self.token_bytes(i) for i in ids])

        # In parts: joining millions of pieces, and dropping them, is one call that other threads would wait for.
        pieces = [joined(token_ids[low : low + _DECODED_AT_ONCE]) for low in range(0, len(token_ids), _DECODED_AT_ONCE)]
        return b"".join(pieces).decode("utf-8", errors=errors)


def _clean(text: str) -> str:
    """Normalises to NFC as the published tokenizer does; lone surrogates (possible in JSON) become U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", errors="surrogatepass").decode("utf-16", errors="replace")
    if len(text) <= _MAX_MARKS_RUN or _marks().isdisjoint(text):
        return unicodedata.normalize("NFC", text)
    pieces = _cut(text, _marks_run(), _MAX_MARKS_RUN)
    return "".join(unicodedata.normalize("NFC", piece) for piece in pieces)


@functools.cache
def _marks() -> frozenset[str]:
    """Returns the characters whose order normalisation sorts."""
    # A few letters fall apart into marks only, so it is the decomposed form that counts.
    return frozenset(
        character
        for character in map(chr, range(_FIRST_CODE_POINT_WITHOUT_MARKS))
        if unicodedata.combining(unicodedata.normalize("NFD", character)[0])
    )


@functools.cache
def _marks_run() -> re.Pattern[str]:
    """Returns a pattern of noteworthy runs of marks."""
    return re.compile(f"[{''.join(sorted(_marks()))}]{{16,}}")


def _pieces(text: str) -> list[str]:
    """Cuts text where the tokenizer's matcher would fail, and only there."""
    if len(text) <= _MAX_WHITESPACE_RUN:
        return [text]
    return _cut(text, _WHITESPACE_RUN, _MAX_WHITESPACE_RUN)


def _cut(text: str, run: re.Pattern[str], max_run: int) -> list[str]:
    """Cuts runs into parts of at most `max_run`; the last part of a run stays together with what follows."""
    cuts = [0]
    for match in run.finditer(text):
        cuts.extend(range(match.start() + max_run, match.end(), max_run))
    return [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]
