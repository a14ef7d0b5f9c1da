"""Learns the vocabulary, ranks in `qwen.tiktoken` format, from the corpus. It is designed for copying.

The published pattern attaches a space or a quote to the word after it. With ordinary byte-pair merges, ` Parvel` in a
question and `Parvel` in a JSON argument would be split differently, and a small model would have to translate between
them to copy a name. Here only frequent whole words get a token with a leading space, and those merges rank last, so
every other word is split the same way everywhere. Chinese is split into characters and frequent words of two
characters, rare characters into two pieces. tiktoken does the encoding, as in the server; this file only chooses ranks.
"""

from __future__ import annotations

import base64
from collections import Counter
from itertools import pairwise
from pathlib import Path

import regex

from demo.recipe.corpus.stream import make_document
from model.contract.tokenizer import PATTERN

NUM_RANKS = 4144  # with the 208 special tokens: 4352 rows, a multiple of 128
NUM_ZH_CHARACTERS = 1050
NUM_ZH_PAIRS = 260
NUM_SPACED_WORDS = 1000
NUM_PUNCTUATION = 90
MIN_CHARACTER_COUNT = 4


class _Counts:
    """Counts of the corpus's pieces by kind."""

    def __init__(self) -> None:
        self.words: Counter[str] = Counter()  # runs of Latin letters, without a leading space or sign
        self.spaced: Counter[str] = Counter()  # those with exactly one leading space
        self.characters: Counter[str] = Counter()
        self.pairs: Counter[str] = Counter()
        self.punctuation: Counter[str] = Counter()

    def add(self, text: str, counts_characters_only: bool = False) -> None:
        for piece in regex.findall(PATTERN, text):
            letters = piece.lstrip() if piece[:1] == " " else piece
            letters = letters[1:] if letters[:1] and not letters[0].isalnum() and letters[1:2].isalpha() else letters
            if not letters.isascii():
                run = [c for c in letters if ord(c) > 127]
                self.characters.update(run)
                if not counts_characters_only:
                    self.pairs.update("".join(p) for p in pairwise(run) if all(x.isalpha() for x in p))
            elif letters.isalpha():
                self.words[letters] += 1
                if piece == " " + letters:
                    self.spaced[letters] += 1
            elif not piece.isdigit():
                self.punctuation[piece] += 1


def train_vocabulary(num_documents: int = 30_000, seed: int = 7) -> list[bytes]:
    """Returns the tokens in the order of their ranks.

    Args:
        num_documents: number of documents that are counted.
        seed: seed of the corpus.
    """
    counts = _Counts()
    once: Counter[str] = Counter()
    for number in range(num_documents):
        document = make_document(seed, 10**6 + number)
        text = "\n".join(turn.text for turn in document.turns)
        counts.add(text)
        once.update(set(regex.findall(r"\p{Latin}+", text)))
    singles = [bytes([b]) for b in range(256)] + _characters(counts)
    extras = _punctuation(counts, NUM_PUNCTUATION, set(singles))
    extras += [p.encode() for p in _pairs(counts, NUM_ZH_PAIRS, set(singles))]
    spaced = _spaced_words(counts)
    # A word counts at most once per document: what matters is how many documents a piece helps.
    merges = _merges(Counter({w: once[w] for w in counts.words if once[w]}), NUM_RANKS, spaced, set(singles))
    room = NUM_RANKS - len(singles) - len(extras)
    number = next(n for n in range(room, 0, -1) if n + len(_whole(spaced, merges[:n])) <= room)
    whole = _whole(spaced, merges[:number])
    tokens = [*singles, *merges[:number], *extras, *(b" " + word for word in whole)]
    tokens += merges[number : number + NUM_RANKS - len(tokens)]  # the one or two places left
    if len(tokens) != NUM_RANKS or len(set(tokens)) != NUM_RANKS:
        raise ValueError("the corpus is too small for this vocabulary")
    return tokens


def _whole(spaced: list[str], merges: list[bytes]) -> list[bytes]:
    known = set(merges)
    return [w.encode() for w in spaced if w.encode() in known or len(w) == 1]


def _characters(counts: _Counts) -> list[bytes]:
    """Returns the first two bytes of every character seen, then the frequent characters."""
    heads = sorted({c.encode()[:2] for c in counts.characters if len(c.encode()) > 2})
    heads += [bytes([0xE4 + i, b]) for i in range(6) for b in range(0x80, 0xC0) if bytes([0xE4 + i, b]) not in heads]
    frequent = [c for c, n in counts.characters.most_common(NUM_ZH_CHARACTERS) if n >= MIN_CHARACTER_COUNT]
    return [*heads, *(c.encode() for c in frequent)]


def _spaced_words(counts: _Counts) -> list[str]:
    return [w for w, _ in counts.spaced.most_common(NUM_SPACED_WORDS)]


def _pairs(counts: _Counts, number: int, known: set[bytes]) -> list[str]:
    return [p for p, _ in counts.pairs.most_common(number * 2) if all(c.encode() in known for c in p)][:number]


def _merges(words: Counter[str], number: int, whole: list[str], known: set[bytes]) -> list[bytes]:
    """Computes byte-pair merges inside words; words that must become whole tokens get enough extra weight."""
    weights = Counter(words)
    for rank, word in enumerate(whole):
        weights[word] += 120 if rank < 600 else 30
    splits = {w: tuple(w) for w in weights}
    found: list[bytes] = []
    pair_counts: Counter[tuple[str, str]] = Counter()
    where: dict[tuple[str, str], set[str]] = {}
    for w, parts in splits.items():
        for pair in pairwise(parts):
            pair_counts[pair] += weights[w]
            where.setdefault(pair, set()).add(w)
    while len(found) < number and pair_counts:
        highest = max(pair_counts.values())
        pair = max(p for p, count in pair_counts.items() if count == highest)
        merged = "".join(pair)
        for w in list(where.get(pair, ())):
            old = splits[w]
            new = _apply(old, pair)
            for p in pairwise(old):
                pair_counts[p] -= weights[w]
                where[p].discard(w)
            for p in pairwise(new):
                pair_counts[p] += weights[w]
                where.setdefault(p, set()).add(w)
            splits[w] = new
        pair_counts.pop(pair, None)
        if merged.encode() not in known and merged.encode() not in found:
            found.append(merged.encode())
    return found


def _apply(parts: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    i = 0
    while i < len(parts):
        if i + 1 < len(parts) and (parts[i], parts[i + 1]) == pair:
            out.append(parts[i] + parts[i + 1])
            i += 2
        else:
            out.append(parts[i])
            i += 1
    return tuple(out)


def _punctuation(counts: _Counts, number: int, known: set[bytes]) -> list[bytes]:
    """Returns frequent runs of punctuation, with the prefixes that tiktoken needs to merge them."""
    out: list[bytes] = []
    for piece, _ in counts.punctuation.most_common(400):
        data = piece.encode()
        # The end of JSON must not share a token with a line break, as constrained decoding stops there.
        if not piece.isascii() or len(data) > 6 or ("\n" in piece and piece[0] in "\"]}{['"):
            continue
        steps = [data[:n] for n in range(2, len(data) + 1) if data[:n] not in known and data[:n] not in out]
        if len(out) + len(steps) <= number:
            out += steps
    return out


def write_ranks(tokens: list[bytes], path: Path) -> None:
    """Writes `qwen.tiktoken`."""
    path.write_text("".join(f"{base64.b64encode(t).decode()} {rank}\n" for rank, t in enumerate(tokens)))
