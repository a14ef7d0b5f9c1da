# ruff: noqa: E501 (tables of words read best in long lines)
"""The arguments of tools: their names in schemas, their descriptions, their values."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from demo.recipe.corpus import hard_texts, values, words
from demo.recipe.corpus.slot_table import TABLE
from demo.recipe.corpus.split import TRAIN
from demo.recipe.corpus.values import Value

T = TypeVar("T")
# (generator, language, split)
Draw = Callable[[random.Random, str, str], T]


@dataclass(frozen=True)
class Slot:
    """A kind of argument; a row of the table."""

    key: str
    kind: str
    names: list[str]
    descriptions: list[str]
    zh_descriptions: list[str]

    @property
    def json_type(self) -> str:
        """Its JSON schema type."""
        kind = self.kind.split(":")[0]
        if kind in ("goods", "people", "cities", "tagwords", "numbers", "color_list"):
            return "array"
        return {"int": "integer", "decimal": "number", "bool": "boolean"}.get(kind, "string")

    @property
    def item_type(self) -> str:
        """Type of an array's items."""
        return "number" if self.kind == "numbers" else "string"

    def options(self) -> list[tuple[str, str, str]]:
        """The choices of an enum: value, English words, Chinese words."""
        return [(value, en, zh) for value, en, zh in (o.split("~") for o in self.kind.removeprefix("enum:").split(","))]


@cache
def all_slots() -> dict[str, Slot]:
    """The table, by key."""
    slots = {}
    for line in TABLE.strip().splitlines():
        key, kind, names, en, zh = (part.strip() for part in line.split(" | "))
        slots[key] = Slot(key, kind, names.split(), en.split(" ; "), zh.split(" ; "))
    return slots


# Kinds whose values may be any text: any word can be a city, a person, a dish.
_OPEN = frozenset(
    "city place country person language word good product dish room device color animal song company".split()
)
_UNITS = [
    u.split("/")
    for u in "km/公里 miles/英里 kg/公斤 pounds/磅 meters/米 feet/英尺 liters/升 gallons/加仑 inches/英寸 cm/厘米 grams/克 ounces/盎司".split()
]


def make_value(slot: Slot, rng: random.Random, lang: str, split: str) -> Value:
    """Draws a value of a slot."""
    kind, _, spec = slot.kind.partition(":")
    if kind == "int":
        low, high = spec.split(":")
        return values.number(rng, int(low), int(high), lang)
    if kind == "enum":
        data, en, zh = rng.choice(slot.options())
        return Value(data, en if lang == "en" else zh)
    special = _SPECIAL.get(kind)
    if special:
        return special(rng, lang, split)
    text = hard_texts.name(rng, lang) if split == TRAIN and kind in _OPEN and rng.random() < hard_texts.SHARE else ""
    text = text or _TEXTS[kind](rng, lang, split)
    return Value(text, text)


def _place_like(rng: random.Random, table: Sequence[tuple[str, ...]], lang: str, split: str) -> str:
    if rng.random() < 0.3:
        return values.pseudo_word(rng, 2).capitalize() if lang == "en" else values.pseudo_zh(rng) + rng.choice("市县镇")
    return values.pair(rng, table, lang, split)


def _code(table: Sequence[tuple[str, ...]]) -> Draw[Value]:
    def draw(rng: random.Random, lang: str, split: str) -> Value:
        entry = rng.choice(table)
        return Value(entry[0], rng.choice([entry[0], entry[0], entry[1] if lang == "en" else entry[2]]))

    return draw


def _from(table: Sequence[tuple[str, ...]], invented: float = 0.15) -> Draw[str]:
    def draw(rng: random.Random, lang: str, split: str) -> str:
        if rng.random() < invented:
            return values.pseudo_word(rng) if lang == "en" else values.pseudo_zh(rng)
        return values.pair(rng, table, lang, split)

    return draw


def _quoted(rng: random.Random, lang: str, split: str) -> Value:
    text = values.sentence(rng, lang, split)
    marks = rng.choice(["''", '""', '""', "  "] if lang == "en" else ["“”", "“”", '""', "「」"])
    return Value(text, marks[0].strip() + text + marks[1].strip())


def _numbers(rng: random.Random, lang: str, split: str) -> Value:
    data = [rng.choice([rng.randint(1, 20), rng.randint(1, 200)]) for _ in range(rng.choice([3, 3, 4, 5]))]
    return Value(data, values.listing(rng, [str(n) for n in data], lang).surface)


def _people(rng: random.Random, lang: str, split: str) -> Value:
    return values.listing(rng, [values.person(rng, lang, split) for _ in range(rng.choice([2, 2, 3]))], lang)


def _tags(rng: random.Random, lang: str, split: str) -> Value:
    if lang == "zh":
        return values.listing(rng, rng.sample(words.ZH_TOPICS, 2), lang)
    return values.listing(rng, [rng.choice([rng.choice(words.NOUNS), values.pseudo_word(rng)]) for _ in range(2)], lang)


def _topic(rng: random.Random, lang: str, split: str) -> str:
    if split == TRAIN and rng.random() < values.PLAIN_SHARE:
        return values.plain_phrase(rng, lang)
    shape = rng.random()
    if shape < 0.35:
        return str(values.pick(rng, words.EN_TOPICS if lang == "en" else words.ZH_TOPICS, split))
    return values.person(rng, lang, split) if shape < 0.5 else values.phrase(rng, lang, split)


def _song(rng: random.Random, lang: str, split: str) -> str:
    if rng.random() < 0.5:
        return values.phrase(rng, lang, split)
    return str(rng.choice(words.SONGS if lang == "en" else words.ZH_SONGS))


_SPECIAL: dict[str, Draw[Value]] = {
    "currency": _code(words.CURRENCIES),
    "ticker": _code([(c[1], c[1], c[1]) for c in words.COMPANIES]),
    "unit": lambda r, lang, s: (lambda u: Value(u[0], u[0] if lang == "en" else u[1]))(r.choice(_UNITS)),
    "decimal": lambda r, lang, s: values.decimal(r),
    "bool": lambda r, lang, s: Value(True, ""),
    "quoted": _quoted,
    "goods": lambda r, lang, s: values.many(r, words.GOODS, lang),
    "people": _people,
    "cities": lambda r, lang, s: values.many(r, words.CITIES, lang),
    "tagwords": _tags,
    "numbers": _numbers,
    "color_list": lambda r, lang, s: values.many(r, words.COLORS, lang),
}
_TEXTS: dict[str, Draw[str]] = {
    "city": lambda r, lang, s: _place_like(r, words.CITIES, lang, s),
    "place": lambda r, lang, s: (
        _place_like(r, words.CITIES, lang, s)
        + (
            " " + r.choice(["Station", "Park", "Museum", "Airport", "Tower"])
            if lang == "en"
            else r.choice(["火车站", "公园", "博物馆", "机场", "大厦"])
        )
    ),
    "country": lambda r, lang, s: (lambda e: e[0] if lang == "en" else e[2])(values.pick(r, words.COUNTRIES, s)),
    "person": values.person,
    "username": lambda r, lang, s: (
        values.pseudo_word(r, 2) + r.choice(["", "", "_" + values.digits(r, 2), values.digits(r, 3)])
    ),
    "email": lambda r, lang, s: values.email(r, s),
    "phone": lambda r, lang, s: r.choice(
        [values.digits(r, 11), f"555-{values.digits(r, 4)}", f"{values.digits(r, 3)}-{values.digits(r, 4)}"]
    ),
    "date": lambda r, lang, s: values.spoken_date(r, lang),
    "clock": lambda r, lang, s: values.spoken_clock(r, lang),
    "weekday": _from(words.WEEKDAYS, 0),
    "language": _from(words.LANGUAGES, 0),
    "topic": _topic,
    "phrase": values.phrase,
    "word": _from(words.DICTIONARY, 0.5),
    "good": _from(words.GOODS),
    "product": _from(words.PRODUCTS),
    "dish": _from(words.DISHES),
    "room": _from(words.ROOMS, 0.1),
    "device": _from(words.DEVICES, 0.1),
    "color": _from(words.COLORS, 0.05),
    "animal": _from(words.ANIMALS),
    "song": _song,
    "company": _from(words.COMPANIES, 0.5),
    "ident": lambda r, lang, s: values.identifier(r),
    "flightno": lambda r, lang, s: "".join(r.choices("ABCDEFGHKLMNQSTUVZ", k=2)) + values.digits(r, r.choice([3, 4])),
    "path": lambda r, lang, s: values.path(r),
    "folder": lambda r, lang, s: (
        r.choice(["", "/"]) + values.pseudo_word(r) + r.choice(["", "/" + values.pseudo_word(r)])
    ),
    "url": lambda r, lang, s: values.url(r),
    "expression": lambda r, lang, s: values.arithmetic(r),
    "tableword": lambda r, lang, s: r.choice(
        ["users", "orders", "products", "customers", "logs", values.pseudo_word(r), values.pseudo_word(r) + "_table"]
    ),
    "host": lambda r, lang, s: r.choice(
        [
            f"{values.pseudo_word(r)}.com",
            f"srv-{values.digits(r, 2)}",
            f"10.0.{r.randrange(255)}.{r.randrange(255)}",
            values.pseudo_word(r),
        ]
    ),
}
