"""Unexpected texts: arbitrary words or characters as names and titles.

A token that no reply ever had to repeat cannot be repeated: every step in which it was wrong has pushed its row of the
output layer down. With values from tables alone, two thirds of the vocabulary were such tokens. So some values are
drawn from all words of the corpus, and Chinese ones also from the common characters.
"""

from __future__ import annotations

import random
import re
from functools import cache

from demo.recipe.corpus import words
from demo.recipe.corpus.chat.courtesy_table import COURTESY
from demo.recipe.corpus.split import TRAIN, is_held_out
from demo.recipe.corpus.templates import texts
from demo.recipe.corpus.tools.domains import domains_of, trained_lines
from demo.recipe.corpus.tools.purpose_words import NOUNS, PROPERTIES, VERBS

SHARE = 0.3  # share of values, among kinds that allow any text
COURTESY_SHARE = 0.15  # share of phrases


@cache
def common_characters() -> list[str]:
    """The 3,755 most used Chinese characters: the first level of GB 2312, rows 16 to 55."""
    rows = (bytes([0xA0 + row, 0xA0 + cell]) for row in range(16, 56) for cell in range(1, 95))
    return [code.decode("gb2312") for code in rows if code < b"\xd7\xfa"]


@cache
def _said() -> tuple[list[str], list[str]]:
    """Returns the distinct English words and Chinese texts of the training side."""
    said = [
        text
        for domain in domains_of(TRAIN).values()
        for lines in domain.lines.values()
        for line in trained_lines(lines)
        for text in texts(line)
    ]
    tables = (
        words.NOUNS,
        words.ADJECTIVES,
        words.EN_TOPICS,
        words.ZH_TOPICS,
        words.GOODS,
        words.PRODUCTS,
        words.DISHES,
    )
    said += [
        text
        for table in tables
        for entry in table
        if not is_held_out(str(entry))
        for text in ([entry] if isinstance(entry, str) else entry)
    ]
    english = sorted({word.lower() for text in said for word in re.findall(r"[A-Za-z]{3,}", text)} - _kept())
    chinese = sorted({run for text in said for run in re.findall(r"[\u4e00-\u9fff]{2,}", text)})
    return english, chinese


@cache
def _kept() -> frozenset[str]:
    """Returns the words, in both languages, that only the evaluation uses for invented tools."""
    kept = (entry for table in (VERBS, NOUNS, PROPERTIES) for entry in table if is_held_out(str(entry)))
    return frozenset(word for entry in kept for word in entry)


@cache
def courtesies() -> tuple[list[str], list[str]]:
    """Returns what people say to the model itself; as a value such text must be copied, not answered."""
    found: tuple[list[str], list[str]] = ([], [])
    for row in COURTESY:
        for texts_, template in zip(found, (row[0], row[2]), strict=True):
            if template.startswith("("):  # the last one is the evaluation's
                texts_.extend(template[1:].partition(")")[0].split("|")[:-1])
    return found


def english_word(rng: random.Random) -> str:
    """Returns a word of the corpus in lower case."""
    return rng.choice(_said()[0])


def chinese_word(rng: random.Random) -> str:
    """Returns two or three characters, from a text of the corpus or arbitrary ones."""
    while True:
        if rng.random() < 0.4:
            run = rng.choice(_said()[1])
            at = rng.randrange(len(run) - 1)
            word = run[at : at + 2]
        else:
            word = "".join(rng.choices(common_characters(), k=rng.choice([2, 2, 3])))
        if word not in _kept():
            return word


def name(rng: random.Random, lang: str) -> str:
    """Returns a name of one or two words."""
    if lang == "zh":
        return chinese_word(rng)
    found = [english_word(rng) for _ in range(rng.choice([1, 1, 2]))]
    return " ".join(found if rng.random() < 0.3 else [word.capitalize() for word in found])


def phrase(rng: random.Random, lang: str) -> str:
    """Returns a few words in a row, or something that people say."""
    if rng.random() < COURTESY_SHARE:
        return rng.choice(courtesies()[0 if lang == "en" else 1])
    if lang == "zh":
        return "".join(chinese_word(rng) for _ in range(rng.choice([1, 2, 2, 3])))
    text = " ".join(english_word(rng) for _ in range(rng.choice([1, 2, 3, 4, 6])))
    return text.capitalize() if rng.random() < 0.4 else text
