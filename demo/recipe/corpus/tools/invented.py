# ruff: noqa: E501 (tables of words read best in long lines)
"""Invented purposes of tools: a verb or property, a noun, some arguments, and wordings of requests."""

from __future__ import annotations

import random

from demo.recipe.corpus import hard_texts
from demo.recipe.corpus.slots import all_slots
from demo.recipe.corpus.split import TRAIN
from demo.recipe.corpus.tools import related
from demo.recipe.corpus.tools.domains import Domain
from demo.recipe.corpus.tools.purpose_words import NOUNS, PROPERTIES, VERBS
from demo.recipe.corpus.values import pick, pseudo_word, pseudo_zh

_OWNERS = "city country person product company user ident movie book song animal dish device flight host file symbol order word place title".split()
_WHERE = "city place country room date topic price language person".split()


def _noun(rng: random.Random, split: str) -> list[str]:
    noun = list(pick(rng, NOUNS, split))
    if rng.random() < 0.15:
        noun = [pseudo_word(rng, 2), pseudo_zh(rng)]
    if split == TRAIN and rng.random() < 0.15:
        noun = [hard_texts.english_word(rng), hard_texts.chinese_word(rng)]
    if rng.random() < 0.25:
        extra = pick(rng, NOUNS, split)
        noun = [f"{extra[0]} {noun[0]}", extra[1] + noun[1]]
    return noun


def _name(english: str) -> str:
    return english.replace(" ", "_")


def commander(rng: random.Random, split: str) -> Domain:
    """A tool that does something to a thing; the question names the arguments."""
    verb, noun = pick(rng, VERBS, split), _noun(rng, split)
    en, zh = noun
    asked, thing = (related.otherwise(mark, entry, rng, split) for mark, entry in (("v", verb), ("n", noun)))
    domain = Domain(f"{verb[0]}_{en}", [_name(en)], [verb[0]], en.capitalize(), zh)
    keys = rng.sample(list(all_slots()), rng.choice([0, 0, 1, 1, 2, 2, 3, 4]))
    domain.slots = [k + ("!" if rng.random() < 0.65 else "") for k in keys if all_slots()[k].kind != "bool"]
    domain.lines["d"] = [f"{verb[0].capitalize()} (a|the|one) {en}[ of the system| by the given arguments]."]
    domain.lines["D"] = [f"{verb[1]}[指定的|一个]{zh}"]
    domain.lines["q"] = [
        f"(|||Please |I want to |I need to |Could you |Can you |Let's |Go and ){asked[0]} (the|a|this|my) {thing[0]}"
    ]
    domain.lines["Q"] = [f"(|||请|帮我|我要|我想|麻烦|请帮我){asked[1]}(|这个|一个|一下){thing[1]}"]
    domain.result = rng.choice(["status", "number", "text", "ident", "list", "name=phrase state=state count=int"])
    return domain


def getter(rng: random.Random, split: str) -> Domain:
    """A tool that returns a property of something."""
    prop = pick(rng, PROPERTIES, split)
    en, zh = prop if rng.random() < 0.9 else (pseudo_word(rng, 2), pseudo_zh(rng))
    if split == TRAIN and rng.random() < 0.15:
        en, zh = hard_texts.english_word(rng), hard_texts.chinese_word(rng)
    key = rng.choice(_OWNERS)
    domain = Domain(f"get_{en}", [_name(en)], "get fetch lookup find check query".split(), en.capitalize(), zh)
    extra = rng.choice([k for k in ("date", "year", "unit", "language", "format") if k != key])
    domain.slots = [f"{key}!"] + ([extra] if rng.random() < 0.3 else [])
    tail = {"date": "[ on {date}]", "year": "[ in {year}]", "unit": "[ in {unit}]", "language": "[ in {language}]"}
    zh_tail = {
        "date": "[，日期{date}]",
        "year": "[，{year}年的]",
        "unit": "[，单位{unit}]",
        "language": "[，用{language}]",
    }
    last, zh_last = (tail.get(extra, ""), zh_tail.get(extra, "")) if len(domain.slots) > 1 else ("", "")
    v = "{" + key + "}"
    domain.lines["d"] = [f"(Get|Returns|Look up|Find|Tells) the {en} of (a|the|a given) {_thing(key)}[ by name]."]
    domain.lines["D"] = [f"(查询|获取|查看){_thing_zh(key)}的{zh}"]
    domain.lines["q"] = [
        f"(What is|What's|Tell me|Get|Find|Show me|Check|Look up|I need|Give me|I want to know) the {en} (of|for) {v}{last}",
        f"(What is|Tell me|Find) {v}'s {en}{last}",
        f"(Do you know|Can you find|Could you check) the {en} of {v}{last}?",
    ]
    domain.lines["Q"] = [
        f"{v}的{zh}(是什么|是多少|怎么样|如何|){zh_last}？",
        f"(查一下|告诉我|查询|看看|我想知道){v}的{zh}{zh_last}",
        f"(能查到|知道|帮我看看){v}的{zh}吗{zh_last}？",
    ]
    questions = related.property_questions(en, rng, split)
    if questions:
        domain.lines["q"] = [questions[0].replace("{v}", v) + last + "?"]
        domain.lines["Q"] = [questions[1].replace("{v}", v) + zh_last + "？"]
    domain.result = rng.choice(["number", "text", "text", "ident", "name=phrase state=state", "text"])
    return domain


def finder(rng: random.Random, split: str) -> Domain:
    """A tool that finds things of a kind."""
    en, zh = _noun(rng, split)
    key = rng.choice(_WHERE)
    domain = Domain(
        f"find_{en}",
        [_name(en) + rng.choice(["", "s"])],
        "find search list recommend show".split(),
        en.capitalize(),
        zh,
    )
    domain.slots = [f"{key}!"] + (["count"] if rng.random() < 0.4 else [])
    joint = {"price": "under", "date": "on", "topic": "about", "language": "in", "person": "by"}.get(key, "in")
    zh_joint = {"price": "价格低于{price}的", "topic": "关于{topic}的"}.get(key, "{" + key + "}的")
    thing = related.otherwise("n", [en, zh], rng, split)
    v = "{" + key + "}"
    count = "[, {count} of them]" if len(domain.slots) > 1 else ""
    zh_count = "[，要{count}个]" if len(domain.slots) > 1 else ""
    domain.lines["d"] = [f"(Find|Search|List|Recommend) {en}s {joint} a[ certain] {_thing(key)}."]
    domain.lines["D"] = [f"(查找|搜索|推荐|列出)[某个]{_thing_zh(key)}的{zh}"]
    domain.lines["q"] = [
        f"(Find|Search for|List|Show me|Recommend|Look for)[ me| some| a] {thing[0]}s {joint} {v}{count}",
        f"(Are there any|Which) {thing[0]}s[ can you find| do you know] {joint} {v}{count}?",
        f"I am looking for a {thing[0]} {joint} {v}{count}",
    ]
    domain.lines["Q"] = [
        f"(查找|搜索|推荐|列出|找|帮我找){zh_joint}{thing[1]}{zh_count}",
        f"有(没有|哪些){zh_joint}{thing[1]}{zh_count}？",
        f"我在找{zh_joint}{thing[1]}{zh_count}",
    ]
    domain.result = "list"
    return domain


def _thing(key: str) -> str:
    return {"ident": "record", "symbol": "stock", "host": "server", "title": "entry"}.get(key, key)


def _thing_zh(key: str) -> str:
    known = "city/城市 country/国家 person/人 product/商品 company/公司 user/用户 movie/电影 book/书 song/歌曲 animal/动物 dish/菜 device/设备 flight/航班 file/文件 order/订单 word/词语 place/地点 room/房间 date/日期 topic/主题 price/价格 language/语言"
    return dict(p.split("/") for p in known.split()).get(key, "对象")


def invent_domain(rng: random.Random, split: str) -> Domain:
    """Returns a random one of the three kinds."""
    shape = rng.random()
    return commander(rng, split) if shape < 0.5 else getter(rng, split) if shape < 0.8 else finder(rng, split)
