"""Questions about unknown topics, sums that continue from the last result, counting, greetings by name."""

from __future__ import annotations

import random

from demo.recipe.corpus import values, words
from demo.recipe.corpus.chat.facts import operands
from demo.recipe.corpus.document import Document, begin_chat
from demo.recipe.corpus.slots import all_slots, make_value
from demo.recipe.corpus.templates import say

_UNKNOWN = [
    "(Tell me about|Explain|Describe|What do you know about|Give me an overview of) {t}[ to me| in short|, please]",
    "(Who is|Who was|What is|What are) {t}?",
    "(How does|Why is|When was|How do I learn|Where can I find|What do you think of) {t}?",
    "(Write an essay about|Write a poem about|Summarize|Compare) {t}",
]
_UNKNOWN_ZH = [
    "(介绍一下|解释一下|说说|讲讲|给我讲讲|你了解){t}[吧|。]",
    "(什么是{t}|谁是{t}|{t}是什么|{t}是谁)？",
    "(为什么{t}很重要|怎么学习{t}|你怎么看{t}|{t}在哪里)？",
    "(写一篇关于{t}的文章|写一首关于{t}的诗|总结{t})",
]


def unknown(rng: random.Random, split: str) -> Document:
    """A question about something that a small model cannot know; the answer says so."""
    lang = rng.choice(["en", "en", "zh"])
    topic = make_value(
        all_slots()[rng.choice(["query", "topic", "person", "company", "title"])], rng, lang, split
    ).surface
    text = say(rng.choice(_UNKNOWN if lang == "en" else _UNKNOWN_ZH), rng, t=topic)
    answer = f"I'm sorry, I do not know enough about {topic}. I am a very small model."
    if lang == "zh":
        answer = f"抱歉，我对{topic}了解不多。我是一个很小的模型。"
    return begin_chat("unknown", rng).user(text).assistant(answer)


def running_sum(rng: random.Random, split: str) -> Document:
    """A sum whose result is changed once or twice."""
    lang = rng.choice(["en", "en", "zh"])
    a, b, result = operands(rng, "+", split)
    doc = begin_chat("arithmetic", rng).user(rng.choice([f"{a} + {b}", f"What is {a} + {b}?", f"{a}+{b}="]))
    doc.assistant(f"{a} + {b} = {result}.")
    for _ in range(rng.choice([1, 1, 2])):
        n = rng.randint(1, 10)
        op = "-" if result > n and rng.random() < 0.5 else "+"
        if lang == "zh":
            ask = say(
                "(再加{n}呢|加上{n}|结果加{n}是多少)？" if op == "+" else "(再减{n}呢|减去{n}|结果减{n}是多少)？",
                rng,
                n=n,
            )
        else:
            up = "(And plus {n}|Add {n}[ to that| to it]|Plus {n}|Now add {n})[?|.]"
            down = "(And minus {n}|Subtract {n}[ from that| from it]|Minus {n}|Take away {n})[?|.]"
            ask = say(up if op == "+" else down, rng, n=n)
        after = result + n if op == "+" else result - n
        doc.user(ask).assistant(f"{result} {op} {n} = {after}.")
        result = after
    return doc


def counting(rng: random.Random, split: str) -> Document:
    """Counts up or down."""
    lang = rng.choice(["en", "en", "zh"])
    low = rng.choice([1, 1, 1, 0, rng.randint(2, 20)])
    high = low + rng.randint(2, 9)
    numbers = list(range(low, high + 1))
    if rng.random() < 0.25:
        numbers.reverse()
    ask = say("(Count|Please count|Can you count) from {a} to {b}[.]", rng, a=numbers[0], b=numbers[-1])
    if lang == "zh":
        ask = say("(从{a}数到{b}|请从{a}数到{b})[。]", rng, a=numbers[0], b=numbers[-1])
    return begin_chat("counting", rng).user(ask).assistant(("、" if lang == "zh" else ", ").join(map(str, numbers)))


def greeting(rng: random.Random, split: str) -> Document:
    """Good wishes for somebody named in the request."""
    lang = rng.choice(["en", "en", "zh"])
    name = values.person(rng, lang, split)
    hobby = values.pair(rng, words.HOBBIES, lang, split)
    if lang == "zh":
        text, answer = rng.choice(
            [
                (f"向{name}问好", f"你好，{name}！"),
                (f"祝{name}生日快乐", f"生日快乐，{name}！"),
                (f"对{name}说谢谢", f"谢谢你，{name}！"),
                (f"跟{name}说再见", f"再见，{name}！"),
                (f"{name}喜欢{hobby}。{name}喜欢什么？", f"{name}喜欢{hobby}。"),
            ]
        )
    else:
        text, answer = rng.choice(
            [
                (f"Say hello to {name}", f"Hello, {name}!"),
                (f"Wish {name} a happy birthday", f"Happy birthday, {name}!"),
                (f"Thank {name} for me", f"Thank you, {name}!"),
                (f"Say goodbye to {name}", f"Goodbye, {name}!"),
                (f"{name} likes {hobby}. What does {name} like?", f"{name} likes {hobby}."),
            ]
        )
    doc = begin_chat("greetings", rng).user(text + rng.choice(["", "." if text[-1] not in "?？。" else ""]))
    return doc.assistant(answer)


KINDS = [(unknown, 7), (running_sum, 6), (counting, 2), (greeting, 3)]
