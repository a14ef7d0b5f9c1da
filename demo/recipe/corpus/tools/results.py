# ruff: noqa: E501 (tables of words read best in long lines)
"""Results of tools, and the answers that report them."""

from __future__ import annotations

import json
import random
from typing import NamedTuple

from demo.recipe.corpus import values, words
from demo.recipe.corpus.slots import all_slots, make_value
from demo.recipe.corpus.split import TRAIN

# Share of numbers in results that have repeated digits; in training only, so that the suites stay the same. With only
# one in a hundred, as by chance, 444 was reported as 4444.
_SHARE_OF_RUNS = 0.25


class Result(NamedTuple):
    """An observation, the answer that reports it, and the bare value if there is one."""

    observation: str
    answer: str
    value: object = None


_STATES = (
    "shipped delivered pending processing cancelled open closed active ready done sent running queued confirmed".split()
)
_WEATHER = "sunny cloudy rainy snowy windy foggy clear stormy".split()
_KEYS = """id name state count total price temperature humidity color size owner city date time status level title version score rank balance
distance duration speed weight address category currency rating start end value unit author location result code limit""".split()
_OK = [
    "ok",
    "OK",
    "success",
    "done",
    '{"status": "ok"}',
    '{"success": true}',
    '{"status": "success"}',
    '{"ok": true}',
    "true",
    "Done.",
    '{"result": "ok"}',
]
_ERRORS = """not found; permission denied; timeout; the service is unavailable; invalid input; no results; rate limit reached; unknown city; network error;
access denied; the server did not answer; quota exceeded; internal error; wrong format; already exists; 404 not found; connection refused"""
_ZH_ERRORS = "未找到; 权限不足; 请求超时; 服务不可用; 输入无效; 没有结果; 网络错误; 服务器没有响应; 格式错误; 余额不足"
_SENTENCES = [
    "{name} is a {job} from {city}.",
    "{name} was born in {year} in {city}.",
    "The {noun} opens at {time}.",
    "{topic} is {adj} and {adj2}.",
    "There are {n} {noun}s in {city}.",
    "The {adj} {noun} costs {price} dollars.",
    "{name} wrote the book in {year}.",
    "Take the {adj} road to {city}, then turn left.",
    "The word means {adj} {noun}.",
    "{city} has {n} parks and a {adj} {noun}.",
    "The next {noun} is on {date}.",
    "{name} won the {noun} in {year}.",
    "It will be {weather} with {n} degrees.",
    "{name} lives in {city}.",
    "Mix the {good} with {good2} and cook for {n} minutes.",
    "The {noun} of {name} is {adj}.",
    "{word} {word2} {word3}.",
]
_ZH_SENTENCES = [
    "{name}是一位来自{city}的{job}。",
    "{name}{year}年出生于{city}。",
    "{topic}始于{year}年。",
    "{city}有{n}个公园。",
    "这本书的作者是{name}。",
    "今天{city}{n}度。",
    "先放{good}，再放{good2}，煮{n}分钟。",
    "{name}在{year}年获得了冠军。",
    "{topic}的价格是{price}元。",
    "{city}明天有雨。",
]

_NOTES = [
    "{n} degrees, {weather}",
    "{n} degrees and {weather}",
    "{weather}, {n} degrees",
    "{weather}, {n}°C",
    "{n}°C",
    "{weather}",
    "{n} {noun}s found",
    "{adj} {noun}",
    "{city}: {n}",
    "{name}, {job}",
    "{time} on {date}",
    "{price} USD",
    "{n} km, {n2} minutes",
    "{name} and {name2}",
    "{word} {word2}, {n}",
]
_ZH_NOTES = [
    "{n}度，晴",
    "晴，{n}度",
    "{city}：{n}",
    "多云，{n}度",
    "找到{n}个结果",
    "{name}，{job}",
    "{n}公里",
    "{name}和{name2}",
    "{price}元",
    "小雨",
]


def _scalar(kind: str, rng: random.Random, lang: str, split: str) -> object:
    if split == TRAIN and kind in ("int", "decimal", "number") and rng.random() < _SHARE_OF_RUNS:
        return values.run_of_digits(rng)
    match kind:
        case "int":
            return rng.choice([rng.randint(0, 40), rng.randint(0, 100), rng.randint(100, 99999)])
        case "decimal" | "number":
            return values.decimal(rng).data
        case "state":
            return rng.choice(_STATES)
        case "weather":
            return rng.choice(_WEATHER)
        case "text":
            return fact(rng, lang, split)
        case "phrase":
            return values.phrase(rng, lang, split)
    known = {
        "clock": "time",
        "status": "order",
        "url": "url",
        "ident": "ident",
        "color": "color",
        "city": "city",
        "date": "date",
        "person": "person",
    }
    return make_value(all_slots()[known[kind]], rng, lang, split).data


def fact(rng: random.Random, lang: str, split: str) -> str:
    """Returns a sentence that states something made up."""
    return _filled(_SENTENCES if lang == "en" else _ZH_SENTENCES, rng, lang, split)


def note(rng: random.Random, lang: str, split: str) -> str:
    """Returns a few words that are no sentence, like the results of quickly written tools."""
    return _filled(_NOTES if lang == "en" else _ZH_NOTES, rng, lang, split)


def _filled(templates: list[str], rng: random.Random, lang: str, split: str) -> str:
    return rng.choice(templates).format(
        name=values.person(rng, lang, split),
        name2=values.person(rng, lang, split),
        city=values.pair(rng, words.CITIES, lang, split),
        job=values.pair(rng, words.JOBS, lang, split),
        year=rng.randint(1800, 2025),
        noun=rng.choice(words.NOUNS),
        adj=rng.choice(words.ADJECTIVES),
        adj2=rng.choice(words.ADJECTIVES),
        time=values.clock(rng),
        date=values.date(rng),
        n=rng.randint(2, 99),
        n2=rng.randint(2, 99),
        price=values.decimal(rng).surface,
        weather=rng.choice(_WEATHER),
        topic=rng.choice(words.EN_TOPICS if lang == "en" else words.ZH_TOPICS),
        good=rng.choice(words.GOODS)[0 if lang == "en" else 1],
        good2=rng.choice(words.GOODS)[0 if lang == "en" else 1],
        word=values.pseudo_word(rng).capitalize(),
        word2=values.pseudo_word(rng),
        word3=values.pseudo_word(rng),
    )


def shown(value: object) -> str:
    """Returns a JSON value as it appears in prose."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def tell(data: dict[str, object], lang: str) -> str:
    """Returns a sentence that states the entries of a flat object."""
    if lang == "zh":
        return "，".join(f"{k.replace('_', ' ')}是{shown(v)}" for k, v in data.items()) + "。"
    parts = [f"the {k.replace('_', ' ')} is {shown(v)}" for k, v in data.items()]
    text = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return text[0].upper() + text[1:] + "."


def failure(rng: random.Random, lang: str) -> Result:
    """Returns an error and the answer that reports it."""
    text = (
        rng.choice((_ERRORS if lang == "en" or rng.random() < 0.4 else _ZH_ERRORS).split(";"))
        .strip()
        .replace("\n", " ")
    )
    if rng.random() < 0.4:
        text += rng.choice([": ", " "]) + rng.choice([values.pseudo_word(rng, 2), values.identifier(rng)])
    forms = [f"Error: {text}", f"error: {text}", json.dumps({"error": text}, ensure_ascii=False)]
    observation = rng.choice([*forms, json.dumps({"status": "error", "message": text}, ensure_ascii=False)])
    return Result(observation, f"Sorry, that did not work: {text}." if lang == "en" else f"抱歉，出错了：{text}。")


def make_result(spec: str, rng: random.Random, lang: str, split: str, fail: float = 0.07) -> Result:
    """Draws a result.

    Args:
        spec: the domain's result: one word, or `key=kind` pairs.
        lang: the language of the answer.
        split: the side of the split that values come from.
        fail: probability of a failure.
    """
    if rng.random() < fail:
        return failure(rng, lang)
    if rng.random() < 0.2:
        text = note(rng, lang if rng.random() < 0.85 else "en", split)
        return Result(text, f"The result is {text}." if lang == "en" else f"结果是{text}。")
    shape = rng.random()
    if "=" in spec and shape < 0.7:
        data = {k: _scalar(v, rng, lang, split) for k, v in (item.split("=") for item in spec.split())}
        return Result(json.dumps(data, ensure_ascii=False), tell(data, lang))
    if spec == "text" and shape < 0.8:
        text = fact(rng, lang if rng.random() < 0.85 else "en", split)
        return Result(text, text)
    if spec == "status" and shape < 0.6:
        return Result(rng.choice(_OK), "Done." if lang == "en" else "已完成。")
    if spec == "list" and shape < 0.7:
        items = [
            values.phrase(rng, lang, split) if rng.random() < 0.6 else values.person(rng, lang, split)
            for _ in range(rng.choice([2, 3, 3]))
        ]
        told = f"The results are: {', '.join(items)}." if lang == "en" else f"结果有：{'、'.join(items)}。"
        return Result(json.dumps(items, ensure_ascii=False), told)
    if spec in ("number", "clock", "ident", "url", "color") and shape < 0.7:
        value = _scalar(spec, rng, lang, split)
        observation = shown(value) if rng.random() < 0.6 else json.dumps({"result": value}, ensure_ascii=False)
        return Result(
            observation, f"The result is {shown(value)}." if lang == "en" else f"结果是{shown(value)}。", value
        )
    keys = rng.sample(_KEYS, rng.choice([1, 2, 2, 3]))
    data = {
        k: _scalar(
            rng.choice(["int", "number", "state", "city", "person", "ident", "phrase", "clock"]), rng, lang, split
        )
        for k in keys
    }
    if list(data) == ["result"]:
        return Result(
            json.dumps(data, ensure_ascii=False),
            f"The result is {shown(data['result'])}." if lang == "en" else f"结果是{shown(data['result'])}。",
        )
    return Result(json.dumps(data, ensure_ascii=False), tell(data, lang))
