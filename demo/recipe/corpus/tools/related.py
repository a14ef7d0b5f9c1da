"""Other words for the same: how people ask for what a tool calls otherwise.

`related.txt` lists them. `v`, `n` and `p` are verbs, nouns and properties of `invented.py`; then other words for them,
or kinds of them, in both languages. A property's are whole questions, with `{v}` for whose it is. Only training draws
them, and only for entries of its own side: the evaluation asks for its invented tools in the tools' own words.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from demo.recipe.corpus.split import TRAIN

SHARE = 0.35  # of what is asked for in training


@cache
def _table() -> dict[str, dict[str, list[list[str]]]]:
    """Mark -> word -> other words in English and in Chinese; of a property, question templates."""
    found: dict[str, dict[str, list[list[str]]]] = {"v": {}, "n": {}, "p": {}}
    for line in Path(__file__).with_name("related.txt").read_text(encoding="utf-8").splitlines():
        mark, _, rest = line.partition(" ")
        if mark == "p":  # the templates have bars of their own, but without spaces around them
            word, english, chinese = re.split(r" ?\| ", rest)
            found[mark][word] = [[english.strip()], [chinese]]
        else:
            word, english, chinese = rest.split(" : ")
            found[mark][word] = [english.split(", "), chinese.split(", ")]
    return found


def otherwise(mark: str, entry: Sequence[str], rng: random.Random, split: str) -> Sequence[str]:
    """The entry (English, Chinese) of verbs or nouns, or in training sometimes another word for it."""
    others = _table()[mark].get(entry[0])
    if split != TRAIN or others is None or rng.random() >= SHARE:
        return entry
    return [rng.choice(words) for words in others]


def property_questions(name: str, rng: random.Random, split: str) -> list[str] | None:
    """In training sometimes templates, English and Chinese, that ask for a property in other words."""
    return properties().get(name) if split == TRAIN and rng.random() < SHARE else None


@cache
def properties() -> dict[str, list[str]]:
    """Question templates of both languages, by property."""
    return {word: [texts[0] for texts in others] for word, others in _table()["p"].items()}


@cache
def meanings() -> tuple[dict[str, str], dict[str, str]]:
    """What single English words, and Chinese ones of two characters or more, are other words for, where it is one."""
    owners: tuple[dict[str, set[str]], dict[str, set[str]]] = ({}, {})
    for mark in "vn":
        for word, others in _table()[mark].items():
            for side, texts in zip(owners, others, strict=True):
                for text in texts:
                    side.setdefault(text, set()).add(word.split()[0])
    english, chinese = (
        {text: next(iter(found)) for text, found in side.items() if len(found) == 1 and " " not in text}
        for side in owners
    )
    own = {word for mark in "vn" for word in _table()[mark]}
    return (
        {text: word for text, word in english.items() if text not in own},
        {text: word for text, word in chinese.items() if len(text) > 1},
    )
