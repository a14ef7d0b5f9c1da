"""Questions that need a tool, with the expected call."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

from demo.recipe.corpus.slots import make_value
from demo.recipe.corpus.split import TRAIN
from demo.recipe.corpus.templates import choose
from demo.recipe.corpus.tools.domains import HELD_OUT_DOMAINS, all_domains
from demo.recipe.corpus.tools.tools import Tool, wording
from demo.recipe.corpus.values import Value


@dataclass
class Request:
    """A question and the expected call."""

    tool: Tool
    question: str
    arguments: dict[str, object]
    values: dict[str, Value]

    def arguments_json(self) -> str:
        """Returns the arguments as a reply writes them."""
        return json.dumps(self.arguments, ensure_ascii=False)


def ask(
    tool: Tool, rng: random.Random, lang: str, split: str, fixed: dict[str, Value] | None = None, keep: float = 0.35
) -> Request:
    """Makes a question for a tool.

    Args:
        lang: the language of the question.
        split: the side of the split that wordings and values come from.
        fixed: given values, by template name.
        keep: probability of mentioning an optional argument.
    """
    lines = tool.domain.lines["q" if lang == "en" else "Q"]
    template = wording(lines, rng, TRAIN if tool.domain.key in HELD_OUT_DOMAINS and rng.random() < 0.6 else split)
    chosen: dict[str, Value] = {}
    text = ""
    for piece in choose(template, rng, keep):
        if isinstance(piece, str):
            text += piece
            continue
        name, _, literal = piece[0].partition("=")
        if literal:
            chosen[name] = Value(literal == "true", "")
            continue
        if name not in chosen:
            slot = next(p.slot for p in tool.parameters if p.template_name == name)
            chosen[name] = (fixed or {}).get(name) or make_value(slot, rng, lang, split)
        text += chosen[name].surface
    text += _spelled_out(tool, chosen, fixed or {}, rng, lang, split, keep)
    if split == TRAIN and rng.random() < TAIL_SHARE:
        text = _with_tail(text, rng, lang)
    if lang == "en" and rng.random() < 0.5 and text[:1].islower() and not text[:5].isupper():
        text = text[0].upper() + text[1:]
    return Request(tool, text.strip(), collect(tool, chosen), chosen)


def _with_tail(text: str, rng: random.Random, lang: str) -> str:
    """Appends words that do not belong to the last value."""
    mark = text[-1:] if text[-1:] in "?？" else ""
    return text.removesuffix(mark) + rng.choice(_TAILS if lang == "en" else _TAILS_ZH) + mark


def _spelled_out(
    tool: Tool,
    chosen: dict[str, Value],
    fixed: dict[str, Value],
    rng: random.Random,
    lang: str,
    split: str,
    keep: float,
) -> str:
    """Names the arguments that the wording left out: required ones, and for invented tools also optional ones."""
    text = ""
    invented = tool.domain.key not in all_domains()
    for p in tool.parameters:
        if p.template_name in chosen or not (p.required or (invented and rng.random() < keep)):
            continue
        value = fixed.get(p.template_name) or make_value(p.slot, rng, lang, split)
        chosen[p.template_name] = value
        label = p.name if rng.random() < 0.4 else p.name.replace("_", " ")
        if lang == "zh":
            zh = rng.choice(p.slot.zh_descriptions) if rng.random() < 0.5 else label
            text += rng.choice([f"，{zh}为{value.surface}", f"，{zh}是{value.surface}", f"，{zh}：{value.surface}"])
        else:
            forms = [f" with {label} {value.surface}", f", {label}: {value.surface}", f", {label} {value.surface}"]
            text += rng.choice([*forms, f" and {label} = {value.surface}", f", the {label} is {value.surface}"])
    return text


def collect(tool: Tool, chosen: dict[str, Value]) -> dict[str, object]:
    """Returns the arguments in the schema's order, with nested objects."""
    arguments: dict[str, object] = {}
    for p in tool.parameters:
        if p.template_name not in chosen:
            continue
        data = chosen[p.template_name].data
        if p.parent:
            arguments.setdefault(p.parent, {})[p.name] = data  # type: ignore[index]
        else:
            arguments[p.name] = data
    return arguments


TAIL_SHARE = 0.06
_TAILS = [
    " right now",
    " for me",
    " if you can",
    " as soon as you can",
    " at the moment",
    " quickly",
    " then",
    " again",
]
_TAILS_ZH = ["好吗", "可以吗", "行吗", "，快一点", "，越快越好", "吧", "，现在就要"]
_LEADS = [
    "I just woke up.",
    "I have a little problem.",
    "My friend asked me something.",
    "I am in a hurry.",
    "It is a nice day.",
    "I am planning something.",
    "We are at home now.",
    "My boss needs this today.",
]
_LEADS_ZH = ["我刚起床。", "我有点着急。", "朋友问了我一个问题。", "我正在做计划。", "老板今天就要。", "我们在家里。"]
_POLITE = [
    "{}",
    "{}",
    "{}",
    "{}",
    "Please {}",
    "Hi! {}",
    "Hello, {}",
    "{} Thanks!",
    "{}, please",
    "Quick question: {}",
    "I have a request. {}",
]
_POLITE_ZH = ["{}", "{}", "{}", "{}", "请{}", "你好，{}", "您好！{}", "麻烦你，{}", "{}，谢谢", "我想问一下，{}"]


def polite(text: str, rng: random.Random, lang: str) -> str:
    """Adds words of courtesy to a question."""
    if rng.random() < 0.08:
        lead = rng.choice(_LEADS) + " " if lang == "en" else rng.choice(_LEADS_ZH)
        return lead + text
    form = rng.choice(_POLITE if lang == "en" else _POLITE_ZH)
    ended = text[-1:] in "?？.。!！"
    if ended and form.endswith(("{}, please", "{}，谢谢")):
        form = "{}"
    if form.startswith(("Please", "Hello")) and text[1:2].islower() and not text.startswith("I "):
        text = text[0].lower() + text[1:]
    text = form.format(text)
    return text if ended else text + rng.choice(["", "", "." if lang == "en" else "。"])
