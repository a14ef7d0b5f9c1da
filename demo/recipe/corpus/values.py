"""Random values for tool arguments and chat facts; many of them occur only once.

A value has two forms: in JSON, and as a person writes it in a question. Mostly they are the same text. Learning to copy
it exactly, however odd it is, is the point of the corpus.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from demo.recipe.corpus import hard_texts, words
from demo.recipe.corpus.split import HELD_OUT, TRAIN, is_held_out
from demo.recipe.corpus.templates import choose

T = TypeVar("T")

PLAIN_SHARE = 0.2  # share of titles and topics
# Reminders and topics as people phrase them, where verbs, articles and prepositions belong to the value.
_PLAIN = """
call {person};pay the {noun};buy {good};pick up {person};water the plants;feed the {animal};go to the {noun}
finish the {noun};meet {person};take out the trash;visit {person};write to {person};look at the {noun}
get {good} and {good};{noun} with {person};a {color} {animal};a {animal} and a {animal};the {adj} {noun}
a {adj} {noun} in {city};an old {noun};the history of {topic};the future of {topic};how to draw a {animal}
how {topic} works;the best {noun} in {city};the {noun} of {person};{adj} {noun}s for kids;why {animal}s sleep
a {animal} on the {noun};{person} and the {adj} {animal}
"""
_PLAIN_ZH = """
给{person}打电话;买{good};接{person};交{zh};喂{animal};看{zh};做{zh};去{city};见{person};写{zh};买{good}和{good}
一只{color}的{animal};{animal}和{animal};{zh}的历史;{zh}的发展;{zh}的未来;怎么画{animal};{city}的{zh}
{person}的{zh};为什么{animal}要睡觉;和{person}一起{zh};拿{good};{city}最好的{zh};给{animal}洗澡
还{person}的钱;准备{zh}
"""
_PHRASES = {
    lang: text.strip().replace("\n", ";").split(";") for lang, text in (("en", _PLAIN), ("zh", _PLAIN_ZH))
}
_PAIRS = {"good": words.GOODS, "animal": words.ANIMALS, "color": words.COLORS, "city": words.CITIES}
_WORDS = {"noun": words.NOUNS, "adj": words.ADJECTIVES, "topic": words.EN_TOPICS, "zh": words.ZH_TOPICS}


class Value(NamedTuple):
    """A JSON value and its words in a question."""

    data: object
    surface: str


_ONSETS = "b c d f g h j k l m n p r s t v w z br cr dr fl gl gr kl pl pr sh sl st th tr qu".split()
_VOWELS = "a e i o u a e i o ai ea ee ia io ou".split()
_CODAS = ["", "", "", "", "l", "n", "r", "s", "t", "x", "m", "nd", "rk", "th", "ck"]


def pick(rng: random.Random, items: Sequence[T], split: str) -> T:
    """Chooses among the entries of one side of the split."""
    side = [item for item in items if is_held_out(str(item)) == (split == HELD_OUT)]
    return rng.choice(side or items)


def pseudo_word(rng: random.Random, syllables: int | None = None) -> str:
    """Returns a pronounceable invented word."""
    count = syllables or rng.choice([1, 2, 2, 2, 3])
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(count))


def pseudo_zh(rng: random.Random) -> str:
    """Returns two or three Chinese characters without a meaning."""
    return "".join(rng.choice(words.ZH_GIVEN + words.ZH_SURNAMES) for _ in range(rng.choice([2, 2, 3])))


def digits(rng: random.Random, count: int) -> str:
    """Returns digits that do not begin with 0."""
    return rng.choice("123456789") + "".join(rng.choice(string.digits) for _ in range(count - 1))


def run_of_digits(rng: random.Random) -> int:
    """Returns a number with repeated digits (444, 1111, 2002). The length of such runs must be learned separately."""
    kinds = rng.choice("123456789") + rng.choice(["", "", rng.choice(string.digits)])
    return int(kinds[0] + "".join(rng.choice(kinds) for _ in range(rng.choice([1, 2, 2, 3, 3, 4, 5]))))


def identifier(rng: random.Random) -> str:
    """An order number, a ticket, a code."""
    up = string.ascii_uppercase
    shape = rng.randrange(7)
    if shape == 0:
        return f"{''.join(rng.choices(up, k=rng.choice([1, 2, 3])))}-{digits(rng, rng.choice([3, 4, 5]))}"
    if shape == 1:
        return "".join(rng.choices("0123456789abcdef", k=rng.choice([6, 8])))
    if shape == 2:
        return f"{rng.choice(up)}{digits(rng, rng.choice([3, 4, 6]))}"
    if shape == 3:
        return f"{pseudo_word(rng)}_{digits(rng, 2)}"
    if shape == 4:
        return (
            f"{rng.choice(['ORD', 'INV', 'TK', 'SKU', 'REF', 'ID', 'USR'])}{rng.choice(['-', '', '_'])}{digits(rng, 5)}"
        )
    if shape == 5:
        return f"{digits(rng, 3)}-{digits(rng, 4)}"
    return "".join(rng.choices(up + string.digits, k=rng.choice([4, 5, 6])))


def person(rng: random.Random, lang: str, split: str) -> str:
    """A name; half of the English ones are invented."""
    if lang == "zh" and rng.random() < 0.8:
        return rng.choice(words.ZH_SURNAMES) + "".join(rng.choices(words.ZH_GIVEN, k=rng.choice([1, 2])))
    first = pseudo_word(rng).capitalize() if rng.random() < 0.35 else str(pick(rng, words.FIRST_NAMES, split))
    if rng.random() < 0.5:
        return first
    last = pseudo_word(rng).capitalize() if rng.random() < 0.35 else str(pick(rng, words.LAST_NAMES, split))
    return f"{first} {last}"


def pair(rng: random.Random, table: Sequence[tuple[str, ...]], lang: str, split: str) -> str:
    """An entry of an English/Chinese table in one language."""
    entry = pick(rng, table, split)
    return entry[0] if lang == "en" else entry[-1]


def plain_phrase(rng: random.Random, lang: str) -> str:
    """Returns a reminder or topic in everyday words, from the training side."""

    def draw(kind: str) -> str:
        if kind == "person":
            return person(rng, lang, TRAIN)
        return pair(rng, _PAIRS[kind], lang, TRAIN) if kind in _PAIRS else str(pick(rng, _WORDS[kind], TRAIN))

    pieces = choose(rng.choice(_PHRASES[lang]), rng)
    return "".join(piece if isinstance(piece, str) else draw(piece[0]) for piece in pieces)


def phrase(rng: random.Random, lang: str, split: str) -> str:
    """A short title or message."""
    if split == TRAIN and rng.random() < PLAIN_SHARE:
        return plain_phrase(rng, lang)
    if split == TRAIN and rng.random() < hard_texts.SHARE:
        return hard_texts.phrase(rng, lang)
    if lang == "zh":
        topic = str(pick(rng, words.ZH_TOPICS, split))
        return rng.choice([topic, topic, pseudo_zh(rng) + topic, topic + digits(rng, 2)])
    adjective, noun = str(pick(rng, words.ADJECTIVES, split)), str(pick(rng, words.NOUNS, split))
    second = str(pick(rng, words.NOUNS, split))
    text = rng.choice(
        [
            f"{adjective} {noun}",
            f"{adjective} {noun} {second}",
            f"{noun} {second}",
            f"{noun} for {person(rng, lang, split)}",
            f"{pseudo_word(rng)} {noun}",
            f"{noun} {digits(rng, rng.choice([1, 2, 4]))}",
            f"{adjective} {pseudo_word(rng)}",
        ]
    )
    return text.capitalize() if rng.random() < 0.4 else text


def sentence(rng: random.Random, lang: str, split: str) -> str:
    """Returns a message to send or store."""
    if split == TRAIN and rng.random() < hard_texts.SHARE:
        return hard_texts.phrase(rng, lang)
    if lang == "zh":
        who, topic = person(rng, lang, split), phrase(rng, lang, split)
        hour = rng.randrange(1, 12)
        return rng.choice(
            [
                f"我会晚到{rng.randrange(5, 60)}分钟",
                f"{topic}改到{hour}点",
                f"请带上{topic}",
                f"{who}在等你",
                "生日快乐",
                f"明天{hour}点见",
                f"{topic}已经完成",
                "谢谢你的帮助",
            ]
        )
    noun, other = str(pick(rng, words.NOUNS, split)), phrase(rng, lang, split)
    return rng.choice(
        [
            f"I will be {rng.randrange(5, 60)} minutes late",
            f"the {noun} is ready",
            f"see you at the {noun}",
            f"please bring the {other}",
            f"meet me at {rng.randrange(1, 12)}",
            f"the {noun} starts at {clock(rng)}",
            "happy birthday",
            f"thanks for the {other}",
            f"don't forget the {noun}",
            f"{other} is done",
        ]
    )


def clock(rng: random.Random) -> str:
    """A time of day."""
    return f"{rng.randrange(0, 24):02d}:{rng.choice(['00', '15', '30', '45', f'{rng.randrange(60):02d}'])}"


def date(rng: random.Random) -> str:
    """An ISO date."""
    return f"20{rng.randrange(20, 30)}-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d}"


def spoken_date(rng: random.Random, lang: str) -> str:
    """Returns a date as people say it; arguments repeat it verbatim."""
    if rng.random() < 0.65:
        return date(rng)
    if lang == "zh":
        day = rng.choice(["今天", "明天", "后天", "下周一", "本周五", f"{rng.randint(1, 12)}月{rng.randint(1, 28)}日"])
        return day
    month = rng.choice(words.MONTHS)
    weekday = rng.choice(words.WEEKDAYS)[0]
    return rng.choice(["today", "tomorrow", f"next {weekday}", weekday, f"{month} {rng.randint(1, 28)}"])


def spoken_clock(rng: random.Random, lang: str) -> str:
    """A time of day as people say it."""
    if rng.random() < 0.65:
        return clock(rng)
    hour = rng.randint(1, 12)
    if lang == "zh":
        return rng.choice([f"早上{hour}点", f"下午{hour}点", f"晚上{hour}点半", f"{hour}点"])
    return rng.choice([f"{hour} am", f"{hour} pm", f"{hour}:30 pm", f"{hour}am", f"{hour}pm", "noon"])


def url(rng: random.Random) -> str:
    """An address of a page."""
    host = f"{rng.choice(['www.', '', 'api.'])}{pseudo_word(rng, 2)}.{rng.choice(['com', 'org', 'net', 'io', 'cn'])}"
    return f"https://{host}{rng.choice(['', '/' + pseudo_word(rng), '/' + pseudo_word(rng) + '/' + digits(rng, 3)])}"


def path(rng: random.Random) -> str:
    """A file's name or path."""
    name = rng.choice([*words.NOUNS[:20], pseudo_word(rng), pseudo_word(rng) + "_" + digits(rng, 2)])
    extension = rng.choice(["txt", "csv", "pdf", "json", "py", "md", "png", "docx", "xlsx", "log"])
    folder = rng.choice(["", "", f"{pseudo_word(rng)}/", f"/home/{pseudo_word(rng)}/", "/tmp/", "docs/", "/data/"])
    return f"{folder}{name}.{extension}"


def email(rng: random.Random, split: str) -> str:
    """A mail address."""
    user = rng.choice([str(pick(rng, words.FIRST_NAMES, split)).lower(), pseudo_word(rng, 2)])
    user += rng.choice(["", "", digits(rng, 2), "." + pseudo_word(rng), "_" + digits(rng, 1)])
    return (
        f"{user}@{rng.choice(['example.com', 'mail.com', pseudo_word(rng, 2) + '.org', pseudo_word(rng, 2) + '.com'])}"
    )


def number(rng: random.Random, low: int, high: int, lang: str) -> Value:
    """A whole number, small ones sometimes in words."""
    n = rng.randint(low, high)
    if 2 <= n <= 12 and rng.random() < 0.25:
        return Value(n, words.ZH_NUMBER_WORDS[n] if lang == "zh" else words.NUMBER_WORDS[n])
    return Value(n, str(n))


def decimal(rng: random.Random) -> Value:
    """An amount, whole or with one or two decimals."""
    if rng.random() < 0.6:
        n = rng.choice([rng.randint(2, 99), rng.randint(100, 999), rng.randint(1, 99) * 100])
        return Value(n, str(n))
    text = f"{rng.randint(0, 300)}.{rng.choice([str(rng.randint(1, 9)), f'{rng.randint(0, 9)}{rng.randint(1, 9)}'])}"
    return Value(float(text), text)


def arithmetic(rng: random.Random) -> str:
    """An expression for a calculator tool."""
    a, b, c = (rng.choice([rng.randint(2, 20), rng.randint(20, 999), rng.randint(1000, 9999)]) for _ in range(3))
    op, op2 = rng.choice("+-*/"), rng.choice("+-*/")
    return rng.choice(
        [f"{a} {op} {b}", f"{a}{op}{b}", f"({a} {op} {b}) {op2} {c}", f"{a} {op} {b} {op2} {c}", f"{a}^2"]
    )


def listing(rng: random.Random, items: list[str], lang: str) -> Value:
    """Several things, as a JSON list and as prose."""
    if len(items) == 1:
        return Value(items, items[0])
    if lang == "zh":
        return Value(items, "、".join(items[:-1]) + rng.choice(["和", "、"]) + items[-1])
    return Value(items, ", ".join(items[:-1]) + rng.choice([" and ", " and ", ", "]) + items[-1])


def many(rng: random.Random, table: list[tuple[str, ...]], lang: str) -> Value:
    """Two to four different entries of a table, sometimes an invented one among them."""
    items = [e[0] if lang == "en" else e[-1] for e in rng.sample(table, rng.choice([2, 2, 3, 4]))]
    if rng.random() < 0.2:
        items[0] = pseudo_word(rng) if lang == "en" else pseudo_zh(rng)
    return listing(rng, items, lang)
