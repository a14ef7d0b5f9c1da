# ruff: noqa: E501 (tables of words read best in long lines)
"""Sums, facts and words: questions with one right answer."""

from __future__ import annotations

import random

from demo.recipe.corpus import values, words
from demo.recipe.corpus.document import Document
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
    """Two numbers of the trained range and the result; one pair in seven is kept for the evaluation."""
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
        # Tables are learned by heart; sums must carry over to pairs never seen.
        if op in "*/" or is_held_out(f"{a}{op}{b}") == (split == HELD_OUT):
            return a, b, {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else 0}[op]


def arithmetic(rng: random.Random, lang: str, split: str) -> Exchange:
    """A sum, bare or in a little story. Sums up to 99 + 99, tables up to 10 x 10."""
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


FACTS = [
    ("(What color|What colour) is (the sky|the sea)?", "It is blue.", "(天空|大海)是什么颜色？", "是蓝色的。"),
    ("(What color|What colour) is (grass|a leaf)?", "It is green.", "(草|树叶)是什么颜色？", "是绿色的。"),
    ("(What color|What colour) is (snow|milk)?", "It is white.", "(雪|牛奶)是什么颜色？", "是白色的。"),
    ("(What color|What colour) is (a banana|a lemon)?", "It is yellow.", "(香蕉|柠檬)是什么颜色？", "是黄色的。"),
    (
        "How many days (are in|does|are there in) a week[ have]?",
        "A week has 7 days.",
        "一(周|个星期)有几天？",
        "一周有7天。",
    ),
    ("How many months (are in|are there in) a year?", "A year has 12 months.", "一年有几个月？", "一年有12个月。"),
    ("How many hours (are in|are there in) a day?", "A day has 24 hours.", "一天有几个小时？", "一天有24小时。"),
    (
        "How many minutes (are in|are there in) an hour?",
        "An hour has 60 minutes.",
        "一小时有几分钟？",
        "一小时有60分钟。",
    ),
    (
        "How many seconds (are in|are there in) a minute?",
        "A minute has 60 seconds.",
        "一分钟有几秒？",
        "一分钟有60秒。",
    ),
    ("How many legs does (a dog|a cat|a horse|a cow) have?", "It has 4 legs.", "(狗|猫|马|牛)有几条腿？", "有4条腿。"),
    ("How many legs does a spider have?", "A spider has 8 legs.", "蜘蛛有几条腿？", "蜘蛛有8条腿。"),
    ("How many legs does (an ant|a bee|an insect) have?", "It has 6 legs.", "(蚂蚁|蜜蜂|昆虫)有几条腿？", "有6条腿。"),
    (
        "(What is|Which is) the (largest|biggest) planet?",
        "The largest planet is Jupiter.",
        "最大的行星是什么？",
        "最大的行星是木星。",
    ),
    (
        "(What is|Which is) the (largest|biggest) ocean?",
        "The largest ocean is the Pacific.",
        "最大的海洋是什么？",
        "最大的海洋是太平洋。",
    ),
    (
        "(What is|Which is) the (highest|tallest) mountain?",
        "The highest mountain is Mount Everest.",
        "最高的山是什么？",
        "最高的山是珠穆朗玛峰。",
    ),
    (
        "(What is|Which is) the (fastest) animal[ on land]?",
        "The fastest land animal is the cheetah.",
        "跑得最快的动物是什么？",
        "跑得最快的动物是猎豹。",
    ),
    (
        "(What is the|Which is the) (largest|biggest) animal?",
        "The largest animal is the blue whale.",
        "最大的动物是什么？",
        "最大的动物是蓝鲸。",
    ),
    (
        "(What is the|Tell me the) chemical formula of water?",
        "The formula of water is H2O.",
        "水的化学式是什么？",
        "水的化学式是H2O。",
    ),
    (
        "At what temperature does water (boil|start to boil)?",
        "Water boils at 100 degrees Celsius.",
        "水在多少度沸腾？",
        "水在100摄氏度沸腾。",
    ),
    (
        "At what temperature does water freeze?",
        "Water freezes at 0 degrees Celsius.",
        "水在多少度结冰？",
        "水在0摄氏度结冰。",
    ),
    ("Where does the sun (rise|come up)?", "The sun rises in the east.", "太阳从哪里升起？", "太阳从东方升起。"),
    ("Where does the sun (set|go down)?", "The sun sets in the west.", "太阳从哪里落下？", "太阳从西方落下。"),
    (
        "Who wrote (Romeo and Juliet|Hamlet)?",
        "It was written by William Shakespeare.",
        "《(哈姆雷特|罗密欧与朱丽叶)》是谁写的？",
        "是莎士比亚写的。",
    ),
    (
        "Who wrote Journey to the West?",
        "It was written by Wu Cheng'en.",
        "《西游记》是谁写的？",
        "《西游记》是吴承恩写的。",
    ),
    (
        "Who wrote Dream of the Red Chamber?",
        "It was written by Cao Xueqin.",
        "《红楼梦》是谁写的？",
        "《红楼梦》是曹雪芹写的。",
    ),
    (
        "Who painted the Mona Lisa?",
        "The Mona Lisa was painted by Leonardo da Vinci.",
        "《蒙娜丽莎》是谁画的？",
        "《蒙娜丽莎》是达芬奇画的。",
    ),
    ("(What do bees make|What do bees produce)?", "Bees make honey.", "蜜蜂酿什么？", "蜜蜂酿蜂蜜。"),
    ("What do (pandas) eat?", "Pandas eat bamboo.", "熊猫吃什么？", "熊猫吃竹子。"),
    (
        "(How many continents are there|How many continents does the world have)?",
        "There are 7 continents.",
        "世界上有几个大洲？",
        "世界上有7个大洲。",
    ),
    (
        "What is the (longest river)[ in the world]?",
        "The longest river is the Nile.",
        "世界上最长的河是什么？",
        "世界上最长的河是尼罗河。",
    ),
    (
        "What is a (baby dog|young dog)[ called]?",
        "A young dog is called a puppy.",
        "中国最长的河是什么？",
        "中国最长的河是长江。",
    ),
]


def color_of(rng: random.Random, lang: str, split: str) -> Exchange:
    """Facts everybody knows."""
    row = rng.choice(FACTS)
    return say(row[0] if lang == "en" else row[2], rng), row[1] if lang == "en" else row[3]


def calendar_order(rng: random.Random, lang: str, split: str) -> Exchange:
    """What day or month comes after another."""
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
    """One to three questions with right answers."""
    lang = rng.choice(["en", "en", "zh"])
    topics = [("arithmetic", arithmetic)] * 6 + [
        ("facts", t) for t in (capital, capital, opposite, translate_word, color_of, color_of, compare, calendar_order)
    ]
    doc = Document("facts")
    if rng.random() < 0.92:
        doc.system()
    for _ in range(rng.choice([1, 2, 3, 4])):
        doc.category, topic = rng.choice(topics)
        text, answer = topic(rng, lang, split)
        doc.user(text).assistant(answer)
    return doc


def sums(rng: random.Random, split: str) -> Document:
    """One sum after the other: carrying takes many examples to learn, and here they are cheap."""
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
