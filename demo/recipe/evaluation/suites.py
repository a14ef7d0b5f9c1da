"""Writes the evaluation suites that ship with the project, as any OpenAI-compatible server can be asked them.

`python -m demo.recipe.evaluation.suites --out demo/suites` draws conversations from the held-out side of the corpus
(tools, wordings and values that training never draws) and takes each apart again: messages and tools as a client sends
them, and what the reply must be. `tools.jsonl` has new tools for purposes that training has too, in wordings of its
own; `tools-unmet.jsonl` has purposes that training never meets. The same seed writes the same bytes.
docs/evaluation.md describes the format.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from demo.recipe.corpus.chat import memory
from demo.recipe.corpus.document import DEFAULT_SYSTEM, Document
from demo.recipe.corpus.split import HELD_OUT, TRAIN
from demo.recipe.corpus.tools import episodes, react
from demo.recipe.corpus.tools.tools import Tool
from demo.recipe.evaluation.chat_kinds import chat_document

Message = dict[str, Any]
Case = dict[str, Any]
Draw = Callable[[random.Random], Case | None]
LANGUAGES = ("en", "zh")
MAX_TRIES = 10_000

_STEP = re.compile(
    r"Thought:(?P<thought>[^\n]*)\n"
    r"(?:Action: (?P<name>[^\n]*)\nAction Input: (?P<arguments>[^\n]*)\nObservation:(?: (?P<observation>.*))?"
    r"|Final Answer: (?P<answer>.*))",
    re.DOTALL,
)
_QUESTION = "Begin!\n\nQuestion: "


class ToolShape(NamedTuple):
    """A category of the tools suite: how its conversations are made, and how many tools they offer."""

    category: str
    make: Callable[[react.Episode], Document]
    tools: tuple[int, int]
    cases: int
    has_call: bool = True
    second_step: bool = False


TOOL_SHAPES = (
    ToolShape("one question", episodes.single, (1, 4), 60),
    ToolShape("many tools", episodes.single, (5, 7), 20),
    ToolShape("conversation", episodes.conversation, (1, 4), 20),
    ToolShape("second of two", episodes.two_calls, (2, 4), 15, second_step=True),
    ToolShape("chained", episodes.chained, (2, 4), 15, second_step=True),
    ToolShape("no call", episodes.no_call, (1, 4), 40, has_call=False),
)
CHAT_CASES = {"identity": 30, "memory": 35, "arithmetic": 35, "system prompt": 30}


class Step(NamedTuple):
    """A step of an assistant's text: a call with its result, or an answer."""

    thought: str
    name: str | None
    arguments: dict[str, Any]
    observation: str
    answer: str


def read_steps(text: str) -> list[Step]:
    """Splits an assistant's ReAct text into steps; text without labels is one answer."""
    if not text.startswith("Thought:"):
        return [Step("", None, {}, "", text)]
    steps = []
    for part in re.split(r"\n(?=Thought:)", text):
        match = _STEP.fullmatch(part)
        if match is None:
            raise ValueError(f"not a step: {part!r}")
        arguments = json.loads(match["arguments"]) if match["name"] else {}
        steps.append(
            Step(match["thought"].strip(), match["name"], arguments, match["observation"] or "", match["answer"] or "")
        )
    return steps


def _call_messages(step: Step, number: int) -> list[Message]:
    call_id = f"call_{number}"
    function = {"name": step.name, "arguments": json.dumps(step.arguments, ensure_ascii=False)}
    call = {"id": call_id, "type": "function", "function": function}
    return [
        {"role": "assistant", "content": step.thought or None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call_id, "content": step.observation},
    ]


def to_messages(document: Document, num_last_steps: int = 0) -> list[Message]:
    """Converts a document to the messages that a client sends, up to the requested reply.

    Args:
        document: in the corpus's rendered form.
        num_last_steps: how many steps of the last reply are given.
    """
    messages: list[Message] = []
    for number, turn in enumerate(document.turns):
        is_last = number == len(document.turns) - 1
        if turn.role != "assistant":
            text = turn.text.split(_QUESTION)[-1] if turn.role == "user" else turn.text
            if turn.role != "system" or text != DEFAULT_SYSTEM:  # servers add the default themselves
                messages.append({"role": turn.role, "content": text})
            continue
        steps = read_steps(turn.text)
        for step in steps[:num_last_steps] if is_last else steps:
            if step.name is None:
                messages.append({"role": "assistant", "content": step.answer})
            else:
                messages += _call_messages(step, len(messages))
    return messages


def _to_openai(tool: Tool) -> dict[str, Any]:
    tool.openai_style = True
    function = {"name": tool.name, "description": tool.description, "parameters": tool.schema()}
    return {"type": "function", "function": function}


def _tool_case(shape: ToolShape, language: str, purposes: str, rng: random.Random) -> dict[str, Any] | None:
    """Returns a case, or None if the random conversation is of another kind."""
    episode = react.Episode(rng, HELD_OUT, rng.randint(*shape.tools), purposes=purposes)
    if episode.lang != language:
        return None
    document = shape.make(episode)
    if shape.category == "chained" and document.category != "tools chained":
        return None
    steps = read_steps(document.turns[-1].text)
    num_given = 1 if shape.second_step else 0
    if len(steps) <= num_given or (steps[num_given].name is not None) != shape.has_call:
        return None
    if shape.category == "conversation" and len(document.turns) < 5:
        return None
    wanted = steps[num_given]
    return {
        "category": shape.category,
        "language": language,
        "messages": to_messages(document, num_given),
        "tools": [_to_openai(tool) for tool in episode.tools],
        "expected": None if wanted.name is None else {"name": wanted.name, "arguments": wanted.arguments},
    }


def _chat_case(category: str, language: str, rng: random.Random) -> dict[str, Any] | None:
    document = chat_document(category, rng)
    messages = to_messages(document)
    asked = messages[-1]["content"]
    spoken = "zh" if re.search(r"[\u4e00-\u9fff]", asked) else "en"
    reply = document.turns[-1].text
    if document.category != category or spoken != language:
        return None
    if category in ("identity", "arithmetic") and any(message["content"] == reply for message in messages):
        return None  # the question occurs twice, so the answer could be copied
    case = {"category": category, "language": language, "messages": messages}
    if category == "arithmetic":
        return {**case, "expected": reply.rstrip(".。").split("= ")[-1], "match": "number"}
    told = memory.told_value(reply) if category == "memory" else None
    if told is not None:
        return {**case, "expected": told, "match": "contains"}
    return {**case, "expected": reply, "match": "exact"}


def _distinct(draw: Draw, count: int, seed: str) -> Iterator[Case]:
    """Yields `count` random cases with distinct messages."""
    seen: set[str] = set()
    for number in range(MAX_TRIES):
        case = draw(random.Random(f"{seed}/{number}"))
        key = "" if case is None else json.dumps(case["messages"], ensure_ascii=False)
        if case is None or key in seen:
            continue
        seen.add(key)
        yield case
        if len(seen) == count:
            return
    raise ValueError(f"{seed}: only {len(seen)} of {count} cases after {MAX_TRIES} tries")


def make_tools_suite(seed: int = 1, purposes: str = TRAIN) -> list[dict[str, Any]]:
    """Makes a tools suite, the same for the same seed.

    Args:
        seed: other seeds make other cases.
        purposes: `TRAIN` for purposes that training's tools have too, `HELD_OUT` for purposes that none of them has.
    """
    cases = []
    for shape in TOOL_SHAPES:
        for language in LANGUAGES:
            name = f"suite {seed}/{purposes}/{shape.category}/{language}"

            def draw(rng: random.Random, shape: ToolShape = shape, lang: str = language) -> dict[str, Any] | None:
                return _tool_case(shape, lang, purposes, rng)

            cases += list(_distinct(draw, shape.cases, name))
    return _numbered(cases)


def make_chat_suite(seed: int = 1) -> list[dict[str, Any]]:
    """Makes the chat suite, the same for the same seed."""
    cases = []
    for category, count in CHAT_CASES.items():
        for language in LANGUAGES:
            name = f"suite {seed}/{category}/{language}"

            def draw(rng: random.Random, category: str = category, lang: str = language) -> dict[str, Any] | None:
                return _chat_case(category, lang, rng)

            cases += list(_distinct(draw, count, name))
    return _numbered(cases)


def make_suites(seed: int = 1) -> dict[str, list[dict[str, Any]]]:
    """Makes all suites that ship, by file name."""
    return {
        "tools": make_tools_suite(seed),
        "tools-unmet": make_tools_suite(seed, HELD_OUT),
        "chat": make_chat_suite(seed),
    }


def _numbered(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"id": f"{case['language']}-{case['category'].replace(' ', '-')}-{number:03}", **case}
        for number, case in enumerate(cases)
    ]


def main() -> None:
    """Writes the suites."""
    parser = argparse.ArgumentParser(prog="python -m demo.recipe.evaluation.suites", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo/suites"))
    parser.add_argument("--seed", type=int, default=1, help="another one makes other cases of the same kinds")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, cases in make_suites(arguments.seed).items():
        path = arguments.out / f"{name}.jsonl"
        lines = [json.dumps(case, ensure_ascii=False) + "\n" for case in cases]
        path.write_text("".join(lines), encoding="utf-8")
        print(f"{path}: {len(cases)} cases")


if __name__ == "__main__":
    main()
