# ruff: noqa: E501 (tables of words read best in long lines)
"""Follow-up questions, whose answer must be found earlier in the conversation and copied."""

from __future__ import annotations

import random

from demo.recipe.corpus import hard_texts, values, words
from demo.recipe.corpus.chat.courtesies import courtesy
from demo.recipe.corpus.chat.facts import arithmetic, capital, color_of
from demo.recipe.corpus.document import Document, begin_chat
from demo.recipe.corpus.split import HELD_OUT, TRAIN
from demo.recipe.corpus.templates import say

# key, English statement, English reply, English questions, English answer, and the same in Chinese.
_THINGS = [
    (
        "name",
        "(My name is|I am|I'm|Call me|This is) {v}.",
        "Nice to meet you, {v}!",
        "(What is my name|What's my name|Do you remember my name|Who am I|What am I called|Can you tell me my name)?",
        "Your name is {v}.",
        "(我叫|我的名字是|我是|你可以叫我){v}。",
        "很高兴认识你，{v}！",
        "(我叫什么名字|我叫什么|你还记得我的名字吗|我是谁|我的名字是什么)？",
        "你叫{v}。",
    ),
    (
        "city",
        "I (live in|am from|come from|was born in|moved to) {v}.",
        "{v} is a nice place.",
        "(Where do I live|Where am I from|Which city did I mention|What is my city|Where is my home)?",
        "You are from {v}.",
        "我(住在|来自|是){v}[人]。",
        "{v}是个好地方。",
        "(我住在哪里|我来自哪里|我是哪里人|我的家在哪)？",
        "你来自{v}。",
    ),
    (
        "color",
        "My favorite color is {v}.",
        "{v} is a nice color.",
        "(What is my favorite color|Which color do I like|What's my favorite color|Do you remember my favorite color)?",
        "Your favorite color is {v}.",
        "我最喜欢的颜色是{v}。",
        "{v}很好看。",
        "(我最喜欢什么颜色|我喜欢的颜色是什么|我最喜欢的颜色是什么)？",
        "你最喜欢的颜色是{v}。",
    ),
    (
        "number",
        "My (lucky|favorite) number is {v}.",
        "I will remember {v}.",
        "(What is|What's|Do you remember|Tell me) my (lucky |favorite |)number?",
        "Your number is {v}.",
        "我的(幸运|)数字是{v}。",
        "我记住了{v}。",
        "(我的数字是多少|我的幸运数字是几|你记得我的数字吗)？",
        "你的数字是{v}。",
    ),
    (
        "code",
        "(The|My) (secret |)(code|password) is {v}.[ Remember it.]",
        "I will remember {v}.",
        "(What is|What's|Tell me|Do you remember) (the|my) (secret |)(code|password)?",
        "The code is {v}.",
        "(密码|暗号|代码|口令)是{v}。[请记住。]",
        "我记住了{v}。",
        "(密码是什么|暗号是什么|代码是什么|口令是什么|我说的密码是多少)？",
        "密码是{v}。",
    ),
    (
        "pet",
        "(My dog|My cat|My pet) is (called|named) {v}.",
        "{v} is a lovely name.",
        "(What is my pet called|What is the name of my pet|What's my pet's name|What is my dog called|What is my cat called)?",
        "Your pet is called {v}.",
        "我的(狗|猫|宠物)叫{v}。",
        "{v}是个可爱的名字。",
        "(我的宠物叫什么|我的狗叫什么|我的猫叫什么名字|我的宠物叫什么名字)？",
        "你的宠物叫{v}。",
    ),
    (
        "age",
        "I am {v} years old.",
        "{v} is a good age.",
        "(How old am I|What is my age|Do you know my age)?",
        "You are {v} years old.",
        "我(今年|){v}岁。",
        "{v}岁很好。",
        "(我几岁|我多大了|我今年多大|我今年几岁)？",
        "你{v}岁。",
    ),
    (
        "job",
        "I (work as|am) a {v}.",
        "Being a {v} must be interesting.",
        "(What is my job|What do I do|What's my profession|What do I work as)?",
        "You are a {v}.",
        "我是(一名|一位){v}。",
        "{v}是个好职业。",
        "(我的职业是什么|我是做什么的|我做什么工作)？",
        "你是{v}。",
    ),
    (
        "hobby",
        "I (like|love|enjoy) {v}.",
        "{v} is fun.",
        "(What do I like|What is my hobby|What do I enjoy|What do I love)?",
        "You like {v}.",
        "我(喜欢|爱|爱好){v}。",
        "{v}很有意思。",
        "(我喜欢什么|我的爱好是什么|我爱什么)？",
        "你喜欢{v}。",
    ),
    (
        "food",
        "My favorite food is {v}.",
        "{v} sounds delicious.",
        "(What is my favorite food|What's my favorite food|What food do I like)?",
        "Your favorite food is {v}.",
        "我最喜欢吃{v}。",
        "{v}听起来很好吃。",
        "(我最喜欢吃什么|我喜欢吃什么|我最爱吃什么)？",
        "你最喜欢吃{v}。",
    ),
    (
        "friend",
        "My (best |)friend is (called|named) {v}.",
        "{v} sounds like a good friend.",
        "(What is my friend called|Who is my friend|What is the name of my friend|What's my friend's name)?",
        "Your friend is called {v}.",
        "我(最好的|的)朋友叫{v}。",
        "{v}听起来是个好朋友。",
        "(我的朋友叫什么|我的朋友是谁|我最好的朋友叫什么)？",
        "你的朋友叫{v}。",
    ),
    (
        "meeting",
        "(My|The) meeting is at {v}.",
        "I will remember {v}.",
        "(When is|At what time is|What time is) (my|the) meeting?",
        "The meeting is at {v}.",
        "(会议|我的会议)在{v}。",
        "我记住了{v}。",
        "(会议是几点|会议在什么时候|我的会议几点开)？",
        "会议在{v}。",
    ),
]


def _value(key: str, rng: random.Random, lang: str, split: str) -> str:
    if split == TRAIN and key in ("name", "friend", "city", "pet") and rng.random() < hard_texts.SHARE:
        return hard_texts.name(rng, lang)
    if split == TRAIN and key in ("job", "hobby", "food") and rng.random() < hard_texts.SHARE:
        return hard_texts.name(rng, lang).lower()
    match key:
        case "name" | "friend":
            return values.person(rng, lang, split)
        case "city":
            return (
                values.pair(rng, words.CITIES, lang, split)
                if rng.random() < 0.7
                else values.pseudo_word(rng, 2).capitalize()
            )
        case "color":
            return rng.choice(words.COLORS)[0 if lang == "en" else 1]
        case "number":
            return values.digits(rng, rng.choice([1, 2, 3, 4]))
        case "code":
            return rng.choice(
                [values.identifier(rng), values.pseudo_word(rng), values.digits(rng, rng.choice([3, 4, 5, 6]))]
            )
        case "pet":
            return (
                rng.choice([values.pseudo_word(rng).capitalize(), str(values.pick(rng, words.FIRST_NAMES, split))])
                if lang == "en"
                else rng.choice([values.pseudo_zh(rng), "小" + rng.choice("白黑花黄灰")])
            )
        case "age":
            return str(rng.randint(5, 95))
        case "job":
            return values.pair(rng, words.JOBS, lang, split)
        case "hobby":
            return values.pair(rng, words.HOBBIES, lang, split)
        case "food":
            return values.pair(rng, words.FOODS, lang, split)
    return values.clock(rng)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def remember(rng: random.Random, split: str) -> Document:
    """The user tells facts, one a turn, talks of other things, and then asks for the facts."""
    thing: tuple[str, ...]
    lang = rng.choice(["en", "en", "zh"])
    base = 1 if lang == "en" else 5
    doc = begin_chat("memory", rng)
    things = rng.sample(_THINGS, rng.choice([1, 1, 2, 3]))
    known: dict[str, tuple[str, tuple[str, ...]]] = {}

    def chatter() -> None:
        text, answer = rng.choice([courtesy, arithmetic, capital, color_of])(rng, lang, split)
        doc.user(text).assistant(answer)

    for thing in things:
        value = _value(thing[0], rng, lang, split)
        known[thing[0]] = (value, thing)
        statement = say(thing[base], rng, v=value)
        if rng.random() < 0.3:
            statement = (
                rng.choice(["Hi! ", "Hello, ", "By the way, "]) + statement
                if lang == "en"
                else rng.choice(["你好，", "对了，"]) + statement
            )
        doc.user(statement).assistant(_capital(say(thing[base + 1], rng, v=value)))
        if rng.random() < 0.3:
            chatter()
    if rng.random() < 0.15:  # a correction
        key, (_, thing) = rng.choice(list(known.items()))
        value = _value(key, rng, lang, split)
        known[key] = (value, thing)
        statement = say(thing[base], rng, v=value)
        doc.user("Actually, " + statement if lang == "en" else "不对，" + statement).assistant(
            _capital(say(thing[base + 1], rng, v=value))
        )
    for key in rng.sample(list(known), rng.choice([1, min(2, len(known))])):
        value, thing = known[key]
        text = thing[base + 2]
        options = text[1:].partition(")")[0].split("|")
        if text.startswith("(") and len(options) > 3:
            text = (options[-1] if split == HELD_OUT else rng.choice(options[:-1])) + text.partition(")")[2]
        doc.user(say(text, rng, v=value)).assistant(say(thing[base + 3], rng, v=value))
        if rng.random() < 0.15:
            chatter()
            text = thing[base + 2]
            doc.user(say(text, rng, v=value)).assistant(say(thing[base + 3], rng, v=value))
    return doc


def in_one_message(rng: random.Random, split: str) -> Document:
    """Facts and a question in one message, or a question about what was said before."""
    lang = rng.choice(["en", "en", "zh"])
    doc = Document("memory").system()
    base = 1 if lang == "en" else 5
    if rng.random() < 0.6:
        things = rng.sample(_THINGS, rng.choice([1, 2, 3]))
        told = [(t, _value(t[0], rng, lang, split)) for t in things]
        text = (" " if lang == "en" else "").join(say(t[base], rng, v=v) for t, v in told)
        thing, value = rng.choice(told)
        glue = " " if lang == "en" else ""
        return doc.user(text + glue + say(thing[base + 2], rng, v=value)).assistant(say(thing[base + 3], rng, v=value))
    first, answer = rng.choice([arithmetic, capital, color_of])(rng, lang, split)
    doc.user(first).assistant(answer)
    if rng.random() < 0.5:
        ask = (
            say("(What did I (just |)ask|What was my (last |first |)question|Repeat my question)?", rng)
            if lang == "en"
            else say("(我刚才问了什么|我的问题是什么|我上一个问题是什么)？", rng)
        )
        return doc.user(ask).assistant(f"You asked: {first}" if lang == "en" else f"你问的是：{first}")
    ask = (
        say(
            "(What did you (just |)say|Say that again|Repeat your answer|Can you repeat that|Repeat that)[, please]?",
            rng,
        )
        if lang == "en"
        else say("(你刚才说了什么|再说一遍|重复一遍你的回答|请再说一次)[。]", rng)
    )
    return doc.user(ask).assistant(answer)


def told_value(answer: str) -> str | None:
    """Extracts the value from an answer of `remember`; None for any other text."""
    for thing in _THINGS:
        for template in (thing[4], thing[8]):
            before, _, after = template.partition("{v}")
            if answer.startswith(before) and answer.endswith(after) and len(answer) > len(before) + len(after):
                return answer[len(before) : len(answer) - len(after)]
    return None
