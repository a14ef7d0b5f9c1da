"""Other words for verbs, nouns and properties, as people do not always ask in a tool's own words.

`related.txt` lists them. `v`, `n` and `p` mark verbs, nouns and properties of `purpose_words.py`, followed by other
words for them, or kinds of them, in both languages; for a property these are whole questions, with `{v}` for its owner.
Only training draws them, for entries of its own side: the evaluation asks for invented tools in the tools' own words.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from demo.recipe.corpus.split import TRAIN

SHARE = 0.35  # share of the requests in training


@cache
def _table() -> dict[str, dict[str, list[list[str]]]]:
    """Returns mark -> word -> other words in English and in Chinese (question templates for a property)."""
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
    """Returns the verb or noun (English, Chinese), or in training sometimes other words for it."""
    others = _table()[mark].get(entry[0])
    if split != TRAIN or others is None or rng.random() >= SHARE:
        return entry
    return [rng.choice(words) for words in others]


def property_questions(name: str, rng: random.Random, split: str) -> list[str] | None:
    """Returns, in training and by chance, question templates (English, Chinese) for a property, else None."""
    return properties().get(name) if split == TRAIN and rng.random() < SHARE else None


@cache
def properties() -> dict[str, list[str]]:
    """Returns the question templates of both languages by property."""
    return {word: [texts[0] for texts in others] for word, others in _table()["p"].items()}


@cache
def meanings() -> tuple[dict[str, str], dict[str, str]]:
    """Maps single English words, and Chinese ones of two or more characters, to the word they mean, if there is one."""
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
