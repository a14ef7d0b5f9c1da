"""Tools with varied names, descriptions and schemas.

A tool belongs to a listed domain or to an invented one, so that no two tools of the corpus are alike. The evaluation
uses domains and wordings that training never draws.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field, replace

from demo.recipe.corpus import hard_texts
from demo.recipe.corpus.slots import Slot, all_slots
from demo.recipe.corpus.split import HELD_OUT, TRAIN
from demo.recipe.corpus.templates import say
from demo.recipe.corpus.tools.domains import Domain, domains_of, trained_lines
from demo.recipe.corpus.tools.invented import invent_domain
from demo.recipe.corpus.values import pseudo_word


@dataclass
class Parameter:
    """An argument of a tool; `parent` names the object that contains it."""

    template_name: str
    name: str
    slot: Slot
    required: bool
    parent: str = ""
    description: str = ""


@dataclass
class Tool:
    """A tool as a client describes it."""

    domain: Domain
    name: str
    human: str
    description: str
    parameters: list[Parameter]
    openai_style: bool = True
    order: int = 0
    labels: dict[str, str] = field(default_factory=dict)

    def schema(self) -> object:
        """Returns the parameters as they appear in the prompt."""
        if not self.openai_style:
            return [
                {"name": p.name, "description": p.description, "required": p.required, "schema": _property(p, False)}
                for p in self.parameters
            ]
        properties: dict[str, object] = {}
        required: list[str] = []
        for p in self.parameters:
            if not p.parent:
                properties[p.name] = _property(p, True)
                required += [p.name] if p.required else []
                continue
            inner = properties.setdefault(p.parent, {"type": "object", "properties": {}, "required": []})
            inner["properties"][p.name] = _property(p, True)  # type: ignore[index]
            if p.required:
                inner["required"].append(p.name)  # type: ignore[index]
                required += [p.parent] if p.parent not in required else []
        schema: dict[str, object] = {"type": "object", "properties": properties}
        if required or self.order == 1:
            schema["required"] = required
        if self.order == 2:
            schema = {k: schema[k] for k in ("properties", "required", "type") if k in schema}
        elif self.order == 3:
            schema["additionalProperties"] = False
        return schema

    def render(self) -> str:
        """Returns the tool's line in the prompt."""
        return (
            f"{self.name}: Call this tool to interact with the {self.human} API. What is the {self.human} API "
            f"useful for? {self.description} Parameters: {json.dumps(self.schema(), ensure_ascii=False)}"
        )


def _property(p: Parameter, describe: bool) -> dict[str, object]:
    kind = p.slot.json_type
    out: dict[str, object] = {"type": kind}
    if kind == "array":
        out["items"] = {"type": p.slot.item_type}
    if p.slot.kind.startswith("enum:"):
        out["enum"] = [value for value, _, _ in p.slot.options()]
    if describe and p.description:
        out["description"] = p.description
    return out


def style_name(parts: list[str], rng: random.Random) -> str:
    """Joins words in one of the styles of programmers."""
    parts = [w for part in parts for w in part.split("_")]
    shape = rng.random()
    if shape < 0.62:
        return "_".join(parts)
    if shape < 0.8:
        return parts[0] + "".join(w.capitalize() for w in parts[1:])
    if shape < 0.88:
        return "".join(w.capitalize() for w in parts)
    return "-".join(parts) if shape < 0.94 else "".join(parts)


def pick_domain(rng: random.Random, split: str, generic: float = 0.35, purposes: str | None = None) -> Domain:
    """Returns a domain of one side (of `purposes` if given), or with the probability `generic` an invented one."""
    if rng.random() < generic:
        return invent_domain(rng, split)
    return rng.choice(list(domains_of(purposes or split).values()))


_MORE = [
    "Use this tool when the user asks for it.",
    "Returns a JSON object.",
    "This function takes the arguments below and returns the result as text.",
    "Only call it when needed.",
    "Useful for everyday questions.",
    "The result is a short text.",
    "Input should be valid.",
    "Call this function whenever it can help to answer.",
    "Works best with exact values.",
]
_MORE_ZH = [
    "当用户需要时使用此工具。",
    "返回JSON对象。",
    "输入参数，返回结果文本。",
    "仅在需要时调用。",
    "适用于日常问题。",
]


def _make_name(domain: Domain, rng: random.Random, split: str) -> tuple[str, bool]:
    """Returns a name of a tool, and whether it tells the tool's purpose."""
    verb, noun = rng.choice(domain.verbs), rng.choice(domain.nouns)
    parts = rng.choice([[verb, noun], [verb, noun], [noun], [noun, verb]])
    if len(parts) == 1 and len(domain.verbs) == 1:
        parts = [verb, noun]  # an invented domain needs its verb to differ from its neighbours
    if rng.random() < 0.3:
        extra = rng.choice(
            [pseudo_word(rng), pseudo_word(rng), "api", "tool", "v2", "my", "service", rng.choice("xyz")]
        )
        parts = [extra, *parts] if rng.random() < 0.5 else [*parts, extra]
    if split == TRAIN and rng.random() < 0.2:
        parts.insert(rng.randint(0, len(parts)), hard_texts.english_word(rng))
    name = style_name(parts, rng)
    name_tells = rng.random() >= 0.08
    if not name_tells:
        name = rng.choice(
            [pseudo_word(rng, 2), f"{pseudo_word(rng)}_{rng.randrange(100)}", f"tool_{rng.randrange(100)}"]
        )
    return name, name_tells


def make_tool(domain: Domain, rng: random.Random, lang: str, split: str, rich: float = 0.5) -> Tool:
    """Describes a tool of a domain in a new way.

    Args:
        lang: the language of the description.
        split: the side of the split that wordings come from.
        rich: probability that the parameters have descriptions.
    """
    name, name_tells = _make_name(domain, rng, split)
    openai = rng.random() < 0.75
    human = name if openai or rng.random() < 0.2 else (domain.human if lang == "en" else domain.human_zh)
    lines = domain.lines["d" if lang == "en" else "D"]
    description = say(wording(lines, rng, split), rng)
    if rng.random() < 0.06 and name_tells:
        description = ""
    elif rng.random() < 0.25:
        description = f"{description} {rng.choice(_MORE if lang == 'en' else _MORE_ZH)}"
    elif not openai and rng.random() < 0.5:
        description += (
            " Format the arguments as a JSON object." if rng.random() < 0.7 else " 此工具的输入应为JSON对象。"
        )
    tool = Tool(domain, name, human, description, [], openai, rng.choice([0, 0, 1, 2, 3]))
    describe = rng.random() < rich
    used: set[str] = set()
    for template_name, (key, required) in domain.slot_map().items():
        slot = all_slots()[key]
        if split == TRAIN and slot.kind.startswith("enum:") and rng.random() < hard_texts.SHARE:
            slot = _with_other_options(slot, rng, lang)
        options = [n for n in slot.names if n not in used] or [f"{key}_{len(used)}"]
        param = template_name if ":" in str(domain.slots) and key != template_name else rng.choice(options)
        if rng.random() < 0.08:
            param = rng.choice([f"{param}_{pseudo_word(rng, 1)}", pseudo_word(rng, 1) + "_" + param])
        if split == TRAIN and rng.random() < 0.1:
            param = rng.choice([hard_texts.english_word(rng), f"{hard_texts.english_word(rng)}_{param}"])
            param = f"{param}_{len(used)}" if param in used else param
        if rng.random() < 0.12:
            param = style_name([param], rng).replace("-", "_")
        used.add(param)
        text = say(rng.choice(slot.descriptions if lang == "en" else slot.zh_descriptions), rng)
        parent = template_name.split(".")[0] if "." in template_name else ""
        described = describe or not openai or rng.random() < 0.1
        tool.parameters.append(Parameter(template_name, param, slot, required, parent, text if described else ""))
    if any(p.parent for p in tool.parameters):
        tool.openai_style = True
    if rng.random() < 0.3 and not any(p.parent for p in tool.parameters):
        rng.shuffle(tool.parameters)
    return tool


def _with_other_options(slot: Slot, rng: random.Random, lang: str) -> Slot:
    """Returns the slot with arbitrary choices, which questions name literally."""
    draw = hard_texts.chinese_word if lang == "zh" and rng.random() < 0.4 else hard_texts.english_word
    options = {draw(rng) for _ in range(rng.choice([2, 3, 3, 4]))}
    return replace(slot, kind="enum:" + ",".join(f"{option}~{option}~{option}" for option in sorted(options)))


def wording(lines: list[str], rng: random.Random, split: str) -> str:
    """Returns a wording of one side of the split."""
    trained = trained_lines(lines)
    return lines[-1] if split == HELD_OUT and len(trained) < len(lines) else rng.choice(trained)
