# ruff: noqa: E501 (tables of words read best in long lines)
"""Sums, facts and words: questions with one right answer."""

from __future__ import annotations

import random

from demo.recipe.corpus import values, words
from demo.recipe.corpus.chat.fact_table import FACTS
from demo.recipe.corpus.document import Document, begin_chat
from demo.recipe.corpus.split import HELD_OUT, is_held_out
from demo.recipe.corpus.templates import say

Exchange = tuple[str, str]
_FORMS = {
    "+": (
        "(What is|What's|Calculate|How much is|Compute) {a} (+|plus|and) {b}?",
        "{a}(加|+| + |加上){b}(等于多少|是多少|等于几|=？)",
    ),
    "-": (
        "(What is|What's|Calculate|How much is|Compute) {a} (-|minus) {b}?",
        "{a}(减|-| - |减去){b}(等于多少|是多少|等于几|=？)",
    ),
    "*": (
        "(What is|What's|Calculate|How much is|Compute) {a} (*|times|x|multiplied by) {b}?",
        "{a}(乘|乘以|*|×| * ){b}(等于多少|是多少|等于几|=？)",
    ),
    "/": (
        "(What is|What's|Calculate|How much is|Compute) {a} (/|divided by) {b}?",
        "{a}(除以|/|÷){b}(等于多少|是多少|等于几|=？)",
    ),
}
_STORIES = [
    (
        "+",
        "(I have|{p} has) {a} {t}[ and] (buy|get|find) {b} more. How many {t} (do I have|are there)[ now]?",
        "{p}有{a}个{t}，又(买|得到|捡)了{b}个，现在有几个？",
    ),
    (
        "-",
        "(I have|{p} has) {a} {t} and (eat|lose|give away|sell) {b}. How many {t} (are left|remain)?",
        "{p}有{a}个{t}，(吃|送|丢|卖)了{b}个，还剩几个？",
    ),
    (
        "*",
        "There are {a} (boxes|bags) with {b} {t} each. How many {t} (are there|is that)[ in all]?",
        "有{a}(盒|袋){t}，每(盒|袋){b}个，一共有几个？",
    ),
]


def operands(rng: random.Random, op: str, split: str) -> tuple[int, int, int]:
    """Two numbers and the result. One pair in seven is kept for the evaluation."""
    while True:
        if op == "*":
            a, b = rng.randint(0, 10), rng.randint(0, 10)
        elif op == "/":
            b = rng.randint(1, 10)
            a = b * rng.randint(0, 10)
        else:
            a, b = (
                (rng.randint(0, 20), rng.randint(0, 20))
                if rng.random() < 0.5
                else (rng.randint(0, 99), rng.randint(0, 99))
            )
            if op == "-" and a < b:
                a, b = b, a
        # Multiplication tables are memorised; sums must generalise to unseen pairs.
        if op in "*/" or is_held_out(f"{a}{op}{b}") == (split == HELD_OUT):
            return a, b, {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else 0}[op]


def arithmetic(rng: random.Random, lang: str, split: str) -> Exchange:
    """A calculation, bare or in a little story. Sums up to 99 + 99, products up to 10 x 10."""
    if rng.random() < 0.15:
        op, en, zh = rng.choice(_STORIES)
        while True:
            a, b, c = operands(rng, op, split)
            if 2 <= a <= 20 and 2 <= b <= 20:
                break
        thing = rng.choice(words.FRUITS)
        who = values.person(rng, lang, split)
        text = say(en if lang == "en" else zh, rng, a=a, b=b, t=thing[0 if lang == "en" else 1], p=who)
        return text, f"{a} {op} {b} = {c}."
    op = rng.choice("++--**/")
    a, b, c = operands(rng, op, split)
    bare = rng.random() < 0.2
    text = (
        rng.choice([f"{a} {op} {b}", f"{a}{op}{b}=", f"{a} {op} {b} = ?", f"{a}{op}{b}"])
        if bare
        else say(_FORMS[op][0 if lang == "en" else 1], rng, a=a, b=b)
    )
    return text, f"{a} {op} {b} = {c}."


def compare(rng: random.Random, lang: str, split: str) -> Exchange:
    """Which of two numbers is larger."""
    a, b = rng.sample(range(100), 2)
    big = rng.random() < 0.5
    if lang == "en":
        word = rng.choice(["bigger", "larger", "greater"] if big else ["smaller", "less"])
        return f"Which is {word}, {a} or {b}?", f"{max(a, b) if big else min(a, b)}"
    return f"{a}和{b}哪个{'大' if big else '小'}？", f"{max(a, b) if big else min(a, b)}"


def capital(rng: random.Random, lang: str, split: str) -> Exchange:
    """Capitals of countries, both ways."""
    country, city, zh_country, zh_city = rng.choice(words.COUNTRIES)
    if rng.random() < 0.2:
        if lang == "en":
            return say(
                "(Which country is {c} the capital of|{c} is the capital of which country)?", rng, c=city
            ), f"{city} is the capital of {country}."
        return say("{c}是哪个国家的首都？", rng, c=zh_city), f"{zh_city}是{zh_country}的首都。"
    if lang == "en":
        return say(
            "(What is the capital of|What's the capital of|Tell me the capital of|Name the capital of|Which city is the capital of|The capital of) {c}?",
            rng,
            c=country,
        ), f"The capital of {country} is {city}."
    return say(
        "{c}的首都(是哪里|是什么|在哪|是哪座城市|是哪个城市)？", rng, c=zh_country
    ), f"{zh_country}的首都是{zh_city}。"


def opposite(rng: random.Random, lang: str, split: str) -> Exchange:
    """Antonyms."""
    pair = list(rng.choice(words.OPPOSITES if lang == "en" else words.ZH_OPPOSITES))
    rng.shuffle(pair)
    if lang == "en":
        return say(
            "(What is|What's|Tell me|Give me) the opposite of {w}?", rng, w=pair[0]
        ), f"The opposite of {pair[0]} is {pair[1]}."
    return say("{w}的反义词是什么？", rng, w=pair[0]), f"“{pair[0]}”的反义词是“{pair[1]}”。"


def translate_word(rng: random.Random, lang: str, split: str) -> Exchange:
    """Simple words, English and Chinese."""
    en, zh = rng.choice(words.DICTIONARY)
    if rng.random() < 0.5:
        forms = "(How do you say|What is|Translate) {w} (in|into) Chinese?" if lang == "en" else "{w}用中文怎么说？"
        return say(forms, rng, w=rng.choice([en, f'"{en}"'])), zh
    forms = (
        "(How do you say|What is|Translate) {w} (in|into) English?"
        if lang == "en"
        else "{w}(用英语怎么说|的英文是什么|用英文怎么说)？"
    )
    return say(forms, rng, w=rng.choice([zh, f'"{zh}"'])), en


def color_of(rng: random.Random, lang: str, split: str) -> Exchange:
    """A well-known fact."""
    row = rng.choice(FACTS)
    return say(row[0] if lang == "en" else row[2], rng), row[1] if lang == "en" else row[3]


def calendar_order(rng: random.Random, lang: str, split: str) -> Exchange:
    """The day or month after or before another."""
    i = rng.randrange(7)
    step = rng.choice([1, -1])
    if lang == "zh":
        return (
            f"{words.WEEKDAYS[i][1]}的{'后' if step == 1 else '前'}一天是星期几？",
            f"{words.WEEKDAYS[(i + step) % 7][1]}。",
        )
    word = "after" if step == 1 else "before"
    if rng.random() < 0.5:
        return (
            f"{rng.choice(['What', 'Which'])} day comes {word} {words.WEEKDAYS[i][0]}?",
            f"{words.WEEKDAYS[(i + step) % 7][0]}.",
        )
    i = rng.randrange(12)
    return f"{rng.choice(['What', 'Which'])} month comes {word} {words.MONTHS[i]}?", f"{words.MONTHS[(i + step) % 12]}."


def question(rng: random.Random, split: str) -> Document:
    """One to four questions with one right answer each."""
    lang = rng.choice(["en", "en", "zh"])
    topics = [("arithmetic", arithmetic)] * 6 + [
        ("facts", t) for t in (capital, capital, opposite, translate_word, color_of, color_of, compare, calendar_order)
    ]
    doc = begin_chat("facts", rng)
    for _ in range(rng.choice([1, 2, 3, 4])):
        doc.category, topic = rng.choice(topics)
        text, answer = topic(rng, lang, split)
        doc.user(text).assistant(answer)
    return doc


def sums(rng: random.Random, split: str) -> Document:
    """Many sums in a row: carrying takes many examples to learn, and here they are cheap."""
    lang = rng.choice(["en", "en", "zh"])
    doc = Document("arithmetic").system()
    if rng.random() < 0.6:
        drawn = [(op, *operands(rng, op, split)) for op in rng.choices("++++---*/", k=rng.randint(6, 20))]
        asked = ", ".join(f"{a} {op} {b}" for op, a, b, _ in drawn)
        told = ", ".join(f"{a} {op} {b} = {c}" for op, a, b, c in drawn)
        return doc.user(f"{rng.choice(_LISTS[lang])}{asked}").assistant(f"{told}.")
    for _ in range(rng.randint(6, 14)):
        text, answer = arithmetic(rng, lang, split)
        doc.user(text).assistant(answer)
    return doc


_LISTS = {
    "en": ["Compute: ", "Calculate these: ", "What are these? ", ""],
    "zh": ["计算：", "算一下：", "这些等于多少？", ""],
}
