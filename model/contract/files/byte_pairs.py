"""A tiktoken vocabulary as the byte-pair merges of the tokenizers library, and back.

Pure. tiktoken joins the two neighbours whose joint bytes have the lowest rank; the tokenizers library joins the pair
that stands first in a list. Whichever text a token comes from, the last two pieces it is joined of are the same:
nothing across its borders was joined before, so its bytes went through the same steps as alone. One pair a token, in
the order of ranks, therefore gives the same ids; a token that its own bytes are never joined to is only found where a
whole word is looked up, which `ignore_merges` asks the library to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_NO_RANK = 1 << 62


def _alphabet() -> dict[int, str]:
    """Lists GPT-2's letters for bytes: printable ones are themselves, the others the code points from 256 on."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + n) for n, byte in enumerate(others)}


_LETTERS = _alphabet()
_BYTES = {letter: byte for byte, letter in _LETTERS.items()}


def letters(token: bytes) -> str:
    """Writes a token's bytes in GPT-2's letters."""
    return "".join(map(_LETTERS.__getitem__, token))


def from_letters(text: str) -> bytes:
    """Reads bytes that are written in GPT-2's letters.

    Raises:
        KeyError: a letter that stands for no byte.
    """
    return bytes(map(_BYTES.__getitem__, text))


def merges_of(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Lists the pairs that tokens of several bytes are joined of, in the order of ranks."""
    pairs = (_last_pair(token, ranks) for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1)
    return [pair for pair in pairs if pair is not None]


def never_joined(ranks: Mapping[bytes, int], merges: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
    """Lists the tokens of several bytes that no merge makes: they are found only as whole words."""
    made = {left + right for left, right in merges}
    return [token for token in ranks if len(token) > 1 and token not in made]


def _last_pair(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    pieces = [token[i : i + 1] for i in range(len(token))]
    rank_of = ranks.get
    while len(pieces) > 2:
        lowest, place = _NO_RANK, -1
        for i in range(len(pieces) - 1):
            rank = rank_of(pieces[i] + pieces[i + 1], _NO_RANK)
            if rank < lowest:
                lowest, place = rank, i
        if place < 0:
            return None
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
    return pieces[0], pieces[1]
