# ruff: noqa: E501 (sentences read best whole)
"""The built-in calibration text: sentences of our own in the languages and forms these models meet.

Pure. Quantisation needs inputs that look like real ones, not knowledge; so short patterns filled with many words do.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

Message = tuple[str, str]

_WORDS = {
    "who": "Anna|my brother|the teacher|Dr. Meyer|our neighbour|the engineer|a tired nurse|Chen Wei|the captain|nobody",
    "did": "found|repaired|sold|painted|forgot|described|carried|measured|opened|lost",
    "what": "the old clock|a letter from Lisbon|two wooden boxes|the green bicycle|an unfinished report|a map of the harbour|the broken lamp|seven apples|a recipe for bread|the keys",
    "where": "in the kitchen|near the station|behind the library|on the third floor|at the market|by the river|in a small town in Norway|under the bridge",
    "when": "yesterday evening|before sunrise|in 1987|last Tuesday|during the storm|after the meeting|every winter|on 14 May",
    "why": "because it was raining|although nobody had asked|so that the work could go on|since the shop was closed|while the others slept|but it did not help",
    "topic": "photosynthesis|compound interest|the tides|how a lock works|sorting algorithms|the history of paper|vaccines|volcanoes|jazz|the water cycle",
    "thing": "a kettle|an induction motor|a hash table|a treaty|a sonnet|an enzyme|a mortgage|a glacier|a compiler|a suspension bridge",
    "adj": "simple|reliable|expensive|surprising|fragile|quiet|modern|slow|useful|rare",
}
_ZH = {
    "谁": "小李|我的朋友|王老师|那位医生|工程师|邻居|店主|一个学生|经理|奶奶",
    "时": "昨天晚上|上个星期|天亮以前|下班以后|三年前|每年冬天|五月十四日|开会的时候",
    "地": "在厨房里|在火车站附近|在图书馆后面|在三楼|在市场上|在河边|在一座小城|在桥下",
    "做": "修好了旧钟|写完了一份报告|买了七个苹果|忘记带钥匙|画了一张地图|卖掉了自行车|打开了窗户|读了一封信",
    "故": "因为下雨了|虽然没有人要求|为了让工作继续|但是没有用|所以大家都很高兴|不过时间已经很晚",
    "题": "光合作用|复利|潮汐|排序算法|造纸的历史|疫苗|火山|水循环|量子力学|唐诗",
}
_ENGLISH = (
    "{Who} {did} {what} {where} {when}, {why}.",
    "It was {adj}, and {who} {did} {what} {when}.",
    "When {who} {did} {what}, the rest of us waited {where}.",
    "There are three reasons for it: it is {adj}, it is easy to explain, and it needs no electricity.",
    "What makes {thing} {adj} is not its size but the way its parts work together.",
    "In short, {topic} matters {where} as much as anywhere else.",
    '"Have you seen {what}?" asked {who}. "No," came the answer, "not since {when}."',
    "The price rose from {n} to {m} euros, which is an increase of about {p}%.",
)
_CHINESE = (
    "{时}，{谁}{地}{做}，{故}。",
    "{谁}{做}，{故}。",
    "关于{题}，有三点值得注意：第一，它很常见；第二，它并不难懂；第三，它影响我们每一天的生活。",
    "“你知道{题}吗？”{谁}问道。“知道一点，”对方回答，“{故}。”",
    "价格从{n}元涨到{m}元，上涨了大约{p}%。",
)
_CODE = (
    'def {f}(items: list[int]) -> int:\n    """Return the {f} of the items."""\n    total = 0\n    for item in items:\n        if item % {p} == 0:\n            total += item * {n}\n    return total\n',
    '#include <stdio.h>\n\nint main(void) {{\n    for (int i = 0; i < {p}; ++i) {{\n        printf("%d\\n", i * {n});\n    }}\n    return 0;\n}}\n',
    "SELECT name, COUNT(*) AS total FROM orders WHERE price > {n} GROUP BY name ORDER BY total DESC LIMIT {p};\n",
    'for file in *.log; do grep -c "error {n}" "$file" | sort -n | tail -{p}; done\n',
)


def _english(rng: random.Random, pattern: str) -> str:
    chosen = {key: rng.choice(words.split("|")) for key, words in _WORDS.items()}
    chosen["Who"] = chosen["who"][0].upper() + chosen["who"][1:]
    return pattern.format(**chosen, **_numbers(rng))


def _chinese(rng: random.Random, pattern: str) -> str:
    return pattern.format(**{key: rng.choice(words.split("|")) for key, words in _ZH.items()}, **_numbers(rng))


def _numbers(rng: random.Random) -> dict[str, int]:
    return {"n": rng.randint(2, 999), "m": rng.randint(1000, 99999), "p": rng.randint(2, 60)}


def _paragraph(rng: random.Random, is_chinese: bool, num_sentences: int) -> str:
    if is_chinese:
        return "".join(_chinese(rng, rng.choice(_CHINESE)) for _ in range(num_sentences))
    return " ".join(_english(rng, rng.choice(_ENGLISH)) for _ in range(num_sentences))


def _record(rng: random.Random) -> str:
    record = {
        "id": rng.randint(1, 10**6),
        "name": rng.choice(_WORDS["what"].split("|")),
        "城市": rng.choice(["北京", "上海", "杭州", "成都"]),
        "tags": rng.sample(_WORDS["adj"].split("|"), 2),
        "price": rng.randint(100, 9999) / 100,
        "active": rng.random() < 0.5,
    }
    return json.dumps(record, ensure_ascii=False)


def conversations(seed: int) -> Iterator[list[Message]]:
    """Yields conversations without end, as (role, text); the same for the same seed."""
    rng = random.Random(f"calibration/{seed}")
    while True:
        is_chinese = rng.random() < 0.4
        turns: list[Message] = [("system", "You are a helpful assistant.")]
        for _ in range(rng.randint(1, 3)):
            turns += _exchange(rng, is_chinese)
        yield turns


def _exchange(rng: random.Random, is_chinese: bool) -> list[Message]:
    kind = rng.randrange(5)
    if kind == 0:
        code = rng.choice(_CODE).format(f=rng.choice(("total", "score", "weight")), **_numbers(rng))
        ask = "写一段代码。" if is_chinese else "Write a short program for this."
        return [("user", ask), ("assistant", f"```\n{code}```\n{_paragraph(rng, is_chinese, 1)}")]
    if kind == 1:
        ask = "给我一个JSON的例子。" if is_chinese else "Give me the record as JSON."
        return [("user", ask), ("assistant", _record(rng))]
    if kind == 2:
        a, b = rng.randint(2, 999), rng.randint(2, 999)
        ask = f"{a}乘以{b}等于多少？" if is_chinese else f"What is {a} times {b}?"
        return [("user", ask), ("assistant", f"{a} × {b} = {a * b}")]
    if kind == 3:
        return [("user", _paragraph(rng, is_chinese, 2)), ("assistant", _paragraph(rng, is_chinese, 3))]
    topic = rng.choice((_ZH["题"] if is_chinese else _WORDS["topic"]).split("|"))
    ask = f"请介绍一下{topic}。" if is_chinese else f"Tell me about {topic}."
    points = "\n".join(f"{n}. {_paragraph(rng, is_chinese, 1)}" for n in range(1, rng.randint(3, 5)))
    return [("user", ask), ("assistant", f"{_paragraph(rng, is_chinese, 1)}\n\n{points}")]
