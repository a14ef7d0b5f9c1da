"""Requests for texts: copies, lists, JSON."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

from demo.recipe.corpus import hard_texts, values, words
from demo.recipe.corpus.document import Document, begin_chat
from demo.recipe.corpus.slots import all_slots, make_value
from demo.recipe.corpus.split import TRAIN
from demo.recipe.corpus.templates import say


def _odd_text(rng: random.Random, lang: str, split: str) -> str:
    keys = [
        "person",
        "ident",
        "email",
        "phone",
        "date",
        "url",
        "file",
        "title",
        "text",
        "query",
        "order",
        "user",
        "city",
        "expression",
    ]
    count = rng.choice([1, 1, 2, 3])
    text = (" " if lang == "en" else "，").join(
        str(make_value(all_slots()[rng.choice(keys)], rng, lang, split).data) for _ in range(count)
    )
    if split == TRAIN and rng.random() < hard_texts.SHARE:
        return hard_texts.phrase(rng, lang)
    return text if rng.random() < 0.7 else " ".join(values.pseudo_word(rng) for _ in range(rng.choice([2, 4, 8])))


def copying(rng: random.Random, split: str) -> Document:
    """Repeating a text, spelling a word, picking a word, looking up a value."""
    lang = rng.choice(["en", "en", "zh"])
    doc = begin_chat("copying", rng)
    for _ in range(rng.choice([1, 2, 3, 5])):
        text = _odd_text(rng, lang, split)
        kind = rng.random()
        if kind < 0.55:
            ask = (
                say("(Repeat|Say|Copy|Write|Echo)[ this| after me][ exactly]: {t}", rng, t=text)
                if lang == "en"
                else say("(重复|跟我说|复述|照抄)[这句话]：{t}", rng, t=text)
            )
            doc.user(ask).assistant(text)
        elif kind < 0.7:
            items = [
                values.pseudo_word(rng) if lang == "en" else values.pseudo_zh(rng) for _ in range(rng.choice([3, 4, 5]))
            ]
            index = rng.choice([0, -1, 1])
            place = (
                {0: "first", -1: "last", 1: "second"}[index]
                if lang == "en"
                else {0: "第一个", -1: "最后一个", 1: "第二个"}[index]
            )
            ask = (
                f"What is the {place} word of: {' '.join(items)}"
                if lang == "en"
                else f"{'、'.join(items)}中的{place}词是什么？"
            )
            doc.user(ask).assistant(items[index])
        elif kind < 0.8:
            word = rng.choice([values.pseudo_word(rng), rng.choice(words.DICTIONARY)[0]])
            doc.user(
                say("(Spell|Spell the word|How do you spell) {w}[?]", rng, w=word)
                if lang == "en"
                else f"拼写单词{word}"
            ).assistant("-".join(word))
        else:
            pairs = {
                values.pseudo_word(rng): rng.choice(
                    [values.identifier(rng), values.digits(rng, 3), values.pseudo_word(rng)]
                )
                for _ in range(rng.choice([2, 3, 4, 6]))
            }
            key = rng.choice(list(pairs))
            listing = rng.choice([", ", "; ", "\n"]).join(f"{k} = {v}" for k, v in pairs.items())
            doc.user(f"{listing}\nWhat is {key}?" if lang == "en" else f"{listing}\n{key}是什么？").assistant(
                f"{key} is {pairs[key]}." if lang == "en" else f"{key}是{pairs[key]}。"
            )
    return doc


_LISTS: dict[str, Sequence[tuple[str, ...]]] = {
    "fruits/水果": words.FRUITS,
    "animals/动物": words.ANIMALS,
    "colors/颜色": words.COLORS,
    "cities/城市": words.CITIES[:30],
    "countries/国家": [(c[0], c[2]) for c in words.COUNTRIES],
    "jobs/职业": words.JOBS,
    "hobbies/爱好": words.HOBBIES,
    "foods/食物": words.DISHES,
    "days of the week/星期": words.WEEKDAYS,
    "languages/语言": words.LANGUAGES,
    "rooms/房间": words.ROOMS,
}


def listing(rng: random.Random, split: str) -> Document:
    """Lists of things, numbered, bulleted or in a line."""
    lang = rng.choice(["en", "en", "zh"])
    name, table = rng.choice(list(_LISTS.items()))
    en, zh = name.split("/")
    count = rng.choice([1, 2, 3, 3, 3, 4, 5])
    # Mostly the same things in the same order: guessing an arbitrary choice teaches nothing.
    start_at = rng.randrange(len(table) - count) if rng.random() < 0.15 else 0
    items = [e[0] if lang == "en" else e[-1] for e in table[start_at : start_at + count]]
    number = rng.choice([str(count), words.NUMBER_WORDS[count] if lang == "en" else words.ZH_NUMBER_WORDS[count]])
    style = rng.choice(["plain", "plain", "numbered", "bullets"])
    tail = (
        {"plain": "", "numbered": " as a numbered list", "bullets": " as a bullet list"}[style]
        if lang == "en"
        else {"plain": "", "numbered": "，用编号列出", "bullets": "，用列表"}[style]
    )
    ask = (
        say("(List|Name|Give me|Tell me|Write) {n} {t}{x}[.]", rng, n=number, t=en, x=tail)
        if lang == "en"
        else say("(列出|说出|告诉我|给我|写出){n}(个|种){t}{x}[。]", rng, n=number, t=zh, x=tail)
    )
    if style == "plain":
        answer = (", " if lang == "en" else "、").join(items)
    else:
        answer = "\n".join((f"{i}. " if style == "numbered" else "- ") + item for i, item in enumerate(items, 1))
    return begin_chat("lists", rng).user(ask).assistant(answer)


_FIELDS = {
    "name": "person",
    "age": "age",
    "city": "city",
    "email": "email",
    "phone": "phone",
    "color": "color",
    "title": "title",
    "year": "year",
    "price": "price",
    "date": "date",
    "id": "ident",
    "author": "author",
    "count": "count",
    "company": "company",
    "language": "language",
}
_ZH_FIELDS = {
    "name": "姓名",
    "age": "年龄",
    "city": "城市",
    "email": "邮箱",
    "phone": "电话",
    "color": "颜色",
    "title": "标题",
    "year": "年份",
    "price": "价格",
    "date": "日期",
    "id": "编号",
    "author": "作者",
    "count": "数量",
    "company": "公司",
    "language": "语言",
}


def json_answer(rng: random.Random, split: str) -> Document:
    """Facts from a sentence as JSON with the requested keys."""
    lang = rng.choice(["en", "en", "zh"])
    keys = rng.sample(list(_FIELDS), rng.choice([1, 2, 2, 3, 4]))
    drawn = {k: make_value(all_slots()[_FIELDS[k]], rng, lang, split) for k in keys}
    data = {k: v.data for k, v in drawn.items()}
    if rng.random() < 0.35:
        table = rng.choice([words.FRUITS, words.CITIES, words.ANIMALS])
        data["items"] = [e[0] for e in rng.sample(table, rng.choice([2, 3]))]
        drawn["items"] = values.Value(data["items"], ", ".join(data["items"]))  # type: ignore[arg-type]
    if lang == "en":
        told = ", ".join(
            rng.choice([f"{k} {v.surface}", f"{k}: {v.surface}", f"the {k} is {v.surface}"]) for k, v in drawn.items()
        )
        ask = (
            say("(Write|Give me|Make|Return|Answer with) (JSON|a JSON object) (with|for): {t}", rng, t=told)
            if rng.random() < 0.6
            else say("(Extract|Get|Put) {k} as JSON from this text: {t}.", rng, k=", ".join(keys), t=told)
        )
    else:
        told = "，".join(f"{_ZH_FIELDS.get(k, k) if rng.random() < 0.3 else k}是{v.surface}" for k, v in drawn.items())
        ask = say("(用JSON表示|输出JSON|写成JSON|返回JSON)，(字段|键)为{k}：{t}", rng, k="、".join(drawn), t=told)
    return begin_chat("json", rng).user(ask).assistant(json.dumps(data, ensure_ascii=False))
