"""Conversations with tools that add, subtract and multiply, as in every agent tutorial."""

from __future__ import annotations

import random

from demo.recipe.corpus import values
from demo.recipe.corpus.document import Document
from demo.recipe.corpus.tools.episodes import system_text
from demo.recipe.corpus.tools.invented import commander
from demo.recipe.corpus.tools.questions import Request
from demo.recipe.corpus.tools.react import call_spans, final_span, header
from demo.recipe.corpus.tools.results import Result
from demo.recipe.corpus.tools.tools import Tool

_MATH = {
    "add": ("+", "add plus sum addition", "Add two numbers.", "两数相加"),
    "subtract": ("-", "subtract minus difference", "Subtract b from a.", "两数相减"),
    "multiply": ("*", "multiply times product", "Multiply two numbers.", "两数相乘"),
}


def math_tools(rng: random.Random, split: str) -> Document:
    """One or two calculations with tools that take two numbers each."""
    lang = "zh" if rng.random() < 0.35 else "en"
    keys = rng.sample(list(_MATH), rng.choice([1, 2, 2, 3]))
    tools: dict[str, tuple[Tool, list[str]]] = {}
    params = rng.choice([["a", "b"], ["x", "y"], ["first", "second"], ["num1", "num2"], ["left", "right"]])
    kind = rng.choice(["integer", "number"])
    for key in keys:
        domain = commander(rng, split)
        domain.key = key
        name = rng.choice(
            [key, key, f"{key}_numbers", rng.choice(_MATH[key][1].split()), f"{values.pseudo_word(rng)}_{key}"]
        )
        description = _MATH[key][2] if lang == "en" or rng.random() < 0.5 else _MATH[key][3]
        tool = Tool(domain, name, name, description, [])
        schema = {"type": "object", "properties": {p: {"type": kind} for p in params}, "required": params}
        tool.schema = lambda schema=schema: schema  # type: ignore[method-assign,misc]
        tools[key] = (tool, params)
    episode_tools = [t for t, _ in tools.values()]

    def request(key: str, a: int, b: int) -> tuple[Request, int]:
        value = {"+": a + b, "-": a - b, "*": a * b}[_MATH[key][0]]
        return Request(tools[key][0], "", dict(zip(params, (a, b), strict=True)), {}), value

    a, b, c = (rng.choice([rng.randint(1, 20), rng.randint(1, 200), rng.randint(10, 9999)]) for _ in range(3))
    first, second = rng.choice(keys), rng.choice(keys)
    one, value = request(first, a, b)
    if lang == "en":
        question = {
            "add": [f"What is {a} + {b}?", f"What is {a} plus {b}?", f"Add {a} and {b}", f"the sum of {a} and {b}"],
            "subtract": [f"What is {a} - {b}?", f"What is {a} minus {b}?", f"Subtract {b} from {a}"],
            "multiply": [
                f"What is {a} * {b}?",
                f"What is {a} times {b}?",
                f"Multiply {a} by {b}",
                f"Multiply {a} and {b}",
            ],
        }
        more = {"add": f"add {c}", "subtract": f"subtract {c}", "multiply": f"multiply by {c}"}
    else:
        question = {
            "add": [f"{a}加{b}等于多少？", f"{a}+{b}等于几？", f"计算{a}加{b}"],
            "subtract": [f"{a}减{b}等于多少？", f"{a}-{b}是多少？"],
            "multiply": [f"{a}乘以{b}等于多少？", f"{a}*{b}是多少？", f"计算{a}乘{b}"],
        }
        more = {"add": f"再加{c}", "subtract": f"再减{c}", "multiply": f"再乘以{c}"}
    text = rng.choice(question[first])
    doc = Document("tools math").system(system_text(rng))
    spans = call_spans(one, lang, Result(_shown_number(value, rng), ""), True)
    if rng.random() < 0.5:
        two, value = request(second, value, c)
        text = text.rstrip("?？") + (
            rng.choice([", then ", " and then ", ". Then "]) + more[second]
            if lang == "en"
            else rng.choice(["，", "，然后"]) + more[second]
        )
        spans += call_spans(two, lang, Result(_shown_number(value, rng), ""), False)
    doc.user(*header(episode_tools), text)
    return doc.assistant(*spans, final_span(f"The result is {value}." if lang == "en" else f"结果是{value}。", False))


def _shown_number(value: int, rng: random.Random) -> str:
    return rng.choice([str(value), str(value), f'{{"result": {value}}}'])
