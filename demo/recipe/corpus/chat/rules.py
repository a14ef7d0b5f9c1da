# ruff: noqa: E501 (tables of words read best in long lines)
"""System prompts that give the model a name and a trade, a rule for every answer, or facts about the user."""

from __future__ import annotations

import random
from collections.abc import Sequence

from demo.recipe.corpus import hard_texts, values, words
from demo.recipe.corpus.chat.courtesies import SELF, Topic, about_itself, courtesy
from demo.recipe.corpus.chat.courtesy_table import COURTESY
from demo.recipe.corpus.chat.fact_table import FACTS
from demo.recipe.corpus.chat.facts import arithmetic, capital, color_of, opposite
from demo.recipe.corpus.document import Document
from demo.recipe.corpus.slots import all_slots, make_value
from demo.recipe.corpus.split import TRAIN
from demo.recipe.corpus.templates import say

_ROLES = [
    r.split("/")
    for r in """pirate/海盗 teacher/老师 doctor/医生 chef/厨师 robot/机器人 wizard/巫师 tour_guide/导游 librarian/图书管理员 poet/诗人 coach/教练 detective/侦探
shop_assistant/店员 bank_clerk/银行职员 translator/翻译 gardener/园丁 knight/骑士 scientist/科学家 travel_agent/旅行顾问 customer_service_agent/客服 math_tutor/数学老师""".split()
]


def persona(rng: random.Random, split: str) -> Document:
    """The system prompt gives the model a name and a trade."""
    lang = rng.choice(["en", "en", "zh"])
    name = values.person(rng, lang, split)
    en, zh = values.pick(rng, _ROLES, split)
    role = en.replace("_", " ")
    if split == TRAIN and rng.random() < hard_texts.SHARE:
        role, zh = hard_texts.name(rng, "en").lower(), hard_texts.name(rng, "zh")
    employer = values.pseudo_word(rng, 2).capitalize() + rng.choice(["", " Bank", " Hotel", " Shop", " Inc"])
    if lang == "en":
        article = "an" if role[0] in "aeiou" else "a"
        system = say(
            "(You are|Your name is|Act as|You are called) {n}, {a} {r}[ at {e}|].",
            rng,
            n=name,
            a=article,
            r=role,
            e=employer,
        )
        lines = [
            (say("(What is|What's) your name?", rng), f"My name is {name}."),
            (say("(Who are you?|Introduce yourself.|Tell me who you are.)", rng), f"I am {name}, {article} {role}."),
            (say("(What is your job?|What do you do?|What is your profession?)", rng), f"I am {article} {role}."),
        ]
    else:
        system = say("(你是|你叫|你的名字是){n}，(是|)一(个|名|位){r}。", rng, n=name, r=zh)
        lines = [
            (say("(你叫什么名字|你叫什么|怎么称呼你)？", rng), f"我叫{name}。"),
            (say("(你是谁|介绍一下你自己|自我介绍一下)？", rng), f"我是{name}，一名{zh}。"),
            (say("(你是做什么的|你的职业是什么|你做什么工作)？", rng), f"我是一名{zh}。"),
        ]
    doc = Document("system prompt").system(system)
    for question, answer in rng.sample(lines, rng.choice([1, 1, 2, 3])):
        if rng.random() < 0.25:
            hello = COURTESY[0] if lang == "en" else COURTESY[0][2:]
            doc.user(say(hello[0], rng)).assistant(hello[1])
        doc.user(question).assistant(answer)
    return doc


def system_rule(rng: random.Random, split: str) -> Document:
    """The system prompt sets a rule that every answer follows."""
    lang = rng.choice(["en", "en", "zh"])
    topics = [courtesy, about_itself, arithmetic, capital, color_of, opposite]
    kind = rng.randrange(7)
    doc = Document("system prompt")
    shout = _shout(rng, lang, split)
    rounds = rng.choice([1, 1, 2, 3])
    if kind == 6:
        return _about_the_user(doc, rng, lang, split)
    system, lang = _rule(kind, shout, rng, lang)
    doc.system(system)
    for _ in range(rounds):
        text, answer = _asked(topics, rng, lang, split, kind)
        doc.user(text).assistant(_ruled(kind, answer, shout, lang))
    return doc


def _shout(rng: random.Random, lang: str, split: str) -> str:
    """Returns the words that answers must begin or end with."""
    shout = (
        values.pseudo_word(rng).capitalize()
        if rng.random() < 0.5
        else rng.choice(
            ["Over and out", "Have a nice day", "Arr", "Yours truly", "Cheers", "Stay safe", "Meow", "See you soon"]
        )
    )
    if split == TRAIN and rng.random() < hard_texts.SHARE:
        shout = hard_texts.phrase(rng, lang)
    return shout + rng.choice([".", "!", ""])


def _rule(kind: int, shout: str, rng: random.Random, lang: str) -> tuple[str, str]:
    """Returns a system prompt with a rule, and the language of the questions."""
    if kind == 2:
        text = "(Always answer|Always reply|Reply only|Answer only|Respond) in Chinese[, whatever the language of the question]."
        return say(text, rng), "en"
    if kind == 3:
        text = (
            "(请|)(始终|总是|只)用英(语|文)回答[，无论用户使用什么语言]。"
            if rng.random() < 0.5
            else "(Always answer|Always reply|Reply only|Answer only|Respond) in English."
        )
        return say(text, rng), "zh"
    if kind == 5:
        return say("(Answer|Reply|Write) in (upper case|capital letters)[ only].", rng), "en"
    english, chinese = {
        0: (
            "(End|Finish|Close) (every|each) (answer|reply|message) with (the words |the phrase |): {s}",
            "(每次回答|每个回答|所有回复)(都要|必须|)以“{s}”(结尾|结束)。",
        ),
        1: (
            "(Begin|Start) (every|each) (answer|reply|message) with: {s}",
            "(每次回答|每个回答|所有回复)(都要|必须|)以“{s}”开头。",
        ),
        4: (
            "(Whatever the user says|No matter what is asked|To every message), (answer|reply|respond)( only|) with: {s}",
            "(无论用户说什么|不管问什么)，(都|只)回答：{s}",
        ),
    }[kind]
    return say(english if lang == "en" else chinese, rng, s=shout), lang


def _asked(topics: Sequence[Topic], rng: random.Random, lang: str, split: str, kind: int) -> tuple[str, str]:
    """A question and its answer, which is in the other language if the rule says so."""
    topic = rng.choice(topics)
    if kind not in (2, 3):
        return topic(rng, lang, split)
    if topic is opposite:
        topic = courtesy
    state = rng.getstate()
    question, _ = topic(rng, lang, split)
    after = rng.getstate()
    rng.setstate(state)
    answer = _in_other_language(topic, rng, lang, split, question)
    rng.setstate(after)
    return question, answer


def _in_other_language(topic: Topic, rng: random.Random, lang: str, split: str, question: str) -> str:
    other = "zh" if lang == "en" else "en"
    if topic is arithmetic:
        return topic(rng, lang, split)[1]
    if topic is capital:
        row = rng.choice(words.COUNTRIES)
        return f"{row[2]}的首都是{row[3]}。" if other == "zh" else f"The capital of {row[0]} is {row[1]}."
    tables: dict[Topic, Sequence[tuple[str, str, str, str]]]
    tables = {courtesy: COURTESY, about_itself: SELF, color_of: FACTS}
    table = tables[topic]
    return rng.choice(table)[3 if other == "zh" else 1]


def _ruled(kind: int, answer: str, shout: str, lang: str) -> str:
    glue = " " if lang == "en" else ""
    return {0: f"{answer}{glue}{shout}", 1: f"{shout}{glue}{answer}", 4: shout, 5: answer.upper()}.get(kind, answer)


def _about_the_user(doc: Document, rng: random.Random, lang: str, split: str) -> Document:
    name, city = values.person(rng, lang, split), make_value(all_slots()["city"], rng, lang, split).surface
    if lang == "en":
        doc.system(
            say(
                "(The user's name is|You are talking to|The user is called) {n}[, who lives in {c}|]. The user lives in {c}.",
                rng,
                n=name,
                c=city,
            )
        )
        lines = [
            ("What is my name?", f"Your name is {name}."),
            ("Who am I?", f"You are {name}."),
            ("Where do I live?", f"You live in {city}."),
        ]
    else:
        doc.system(say("(用户的名字是|用户叫|你在和){n}[对话|]。用户住在{c}。", rng, n=name, c=city))
        lines = [
            ("我叫什么名字？", f"你叫{name}。"),
            ("我是谁？", f"你是{name}。"),
            ("我住在哪里？", f"你住在{city}。"),
        ]
    for question, answer in rng.sample(lines, rng.choice([1, 2])):
        doc.user(question).assistant(answer)
    return doc
