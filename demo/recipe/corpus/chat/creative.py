"""Tiny stories with varied wordings, and short code."""

from __future__ import annotations

import json
import random

from demo.recipe.corpus import values, words
from demo.recipe.corpus.document import Document, begin_chat
from demo.recipe.corpus.templates import say

_OPENINGS = [
    "Once upon a time there was a {adj} {animal} named {name}.",
    "A {adj} {animal} called {name} lived near {place}.",
    "In {place} lived {name}, a {adj} {animal}.",
]
_MIDDLES = [
    "One day {name} found a {adj2} {noun}.",
    "One morning {name} lost a {adj2} {noun}.",
    "{name} wanted to see the {adj2} {noun}.",
    "A friend gave {name} a {adj2} {noun}.",
]
_ACTS = [
    "The {animal} took it home and shared it with a {animal2}.",
    "So {name} asked a {animal2} for help.",
    "{name} and a {animal2} went there together.",
    "A {animal2} came by and they became friends.",
]
_ENDINGS = [
    "In the end everyone was happy.",
    "And they lived happily ever after.",
    "That night {name} slept very well.",
    "From that day on {name} was never alone.",
]
_ZH_STORY = (
    [
        "从前有一只{animal}，名叫{name}。",
        "{place}住着一只叫{name}的{animal}。",
        "很久以前，{place}有一只{animal}，大家叫它{name}。",
    ],
    ["有一天，{name}找到了一个{noun}。", "一天早上，{name}丢了{noun}。", "{name}很想得到一个{noun}。"],
    ["它把{noun}分给了{animal2}。", "于是它请{animal2}帮忙。", "{animal2}和它一起出发了。"],
    ["最后大家都很开心。", "从此它们成了好朋友。", "那天晚上{name}睡得很香。"],
)
_ZH_PLACES = "森林里 山上 河边 小村庄里 大海边 花园里".split()
_PLACES = ["a forest", "the sea", "a small village", "a river", "the mountains", "a garden"]


def story(rng: random.Random, split: str) -> Document:
    """Four or five sentences about an animal named in the request."""
    lang = rng.choice(["en", "en", "zh"])
    animal, animal2 = rng.sample(words.ANIMALS, 2)
    named = rng.random() < 0.6
    index = 0 if lang == "en" else 1
    name = values.person(rng, lang, split).split()[0] if named else ("Milo" if lang == "en" else "小宝")
    fill = {
        "name": name,
        "animal": animal[index],
        "animal2": animal2[index],
        "adj": rng.choice([a for a in words.ADJECTIVES[:30] if a[0] not in "aeiou"]),
        "adj2": rng.choice([a for a in words.ADJECTIVES[:30] if a[0] not in "aeiou"]),
        "noun": rng.choice([n for n in words.NOUNS[:60] if n[0] not in "aeiou"])
        if lang == "en"
        else rng.choice(words.PRODUCTS)[1],
        "place": rng.choice(_PLACES if lang == "en" else _ZH_PLACES),
    }
    parts = (_OPENINGS, _MIDDLES, _ACTS, _ENDINGS) if lang == "en" else _ZH_STORY
    text = (" " if lang == "en" else "").join(rng.choice(p).format(**fill) for p in parts)
    if lang == "en":
        ask = say(
            "(Tell|Write)[ me] a (short |little |)story about a {a}" + (" (named|called) {n}" if named else "") + "[.]",
            rng,
            a=animal[0],
            n=name,
        )
    else:
        ask = say(
            "(讲|写|说)一个(关于|)" + ("叫{n}的" if named else "") + "{a}的(小|)故事[。]", rng, a=animal[1], n=name
        )
    return begin_chat("stories", rng).user(ask).assistant(text)


_CODE = [
    ("adds two numbers/两数相加", "def {f}(a, b):\n    return a + b"),
    ("multiplies two numbers/两数相乘", "def {f}(a, b):\n    return a * b"),
    ("subtracts two numbers/两数相减", "def {f}(a, b):\n    return a - b"),
    ("returns the square of a number/求平方", "def {f}(x):\n    return x * x"),
    ("checks if a number is even/判断偶数", "def {f}(n):\n    return n % 2 == 0"),
    ("checks if a number is odd/判断奇数", "def {f}(n):\n    return n % 2 == 1"),
    ("reverses a string/反转字符串", "def {f}(s):\n    return s[::-1]"),
    ("returns the largest number of a list/求列表最大值", "def {f}(items):\n    return max(items)"),
    ("returns the smallest number of a list/求列表最小值", "def {f}(items):\n    return min(items)"),
    ("sums a list/求列表的和", "def {f}(items):\n    return sum(items)"),
    ("sorts a list/排序列表", "def {f}(items):\n    return sorted(items)"),
    ("counts the letters of a word/统计字母个数", "def {f}(word):\n    return len(word)"),
    ("prints hello/打印hello", 'def {f}():\n    print("hello")'),
    ("computes the factorial/求阶乘", "def {f}(n):\n    return 1 if n < 2 else n * {f}(n - 1)"),
    (
        "computes Fibonacci numbers/求斐波那契数",
        "def {f}(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a",
    ),
    ("reads a file/读取文件", "def {f}(path):\n    with open(path) as file:\n        return file.read()"),
    ("checks if a word is a palindrome/判断回文", "def {f}(word):\n    return word == word[::-1]"),
    ("returns the average of a list/求平均值", "def {f}(items):\n    return sum(items) / len(items)"),
    ("makes a string upper case/转换为大写", "def {f}(s):\n    return s.upper()"),
    ("removes duplicates from a list/列表去重", "def {f}(items):\n    return list(set(items))"),
]


def code(rng: random.Random, split: str) -> Document:
    """Small Python functions, often with the requested name."""
    lang = rng.choice(["en", "en", "zh"])
    what, body = rng.choice(_CODE)
    en, zh = what.split("/")
    named = rng.random() < 0.6
    name = (
        rng.choice([values.pseudo_word(rng), rng.choice(words.NOUNS) + "_" + values.pseudo_word(rng)])
        if named
        else "solve"
    )
    if lang == "en":
        ask = say(
            "(Write|Give me|Show me) a Python function" + (" (named|called) {n}" if named else "") + " that {w}[.]",
            rng,
            n=name,
            w=en,
        )
    else:
        ask = say("(写|给我|请写)一个" + ("名为{n}的" if named else "") + "Python函数，{w}[。]", rng, n=name, w=zh)
    if rng.random() < 0.08:
        value = rng.choice([rng.randint(1, 99), values.phrase(rng, "en", split)])
        shown = json.dumps(value)
        doc = begin_chat("code", rng).user(f"How do I print {shown} in Python?")
        return doc.assistant(f"```python\nprint({shown})\n```")
    return begin_chat("code", rng).user(ask).assistant(f"```python\n{body.format(f=name)}\n```")
