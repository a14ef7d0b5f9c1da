"""From answers to figures: the three published ones for tools, and the share of right replies for chats."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tools.evaluation.asking import Answer
from tools.evaluation.rouge import canonical_json, rouge_l
from tools.evaluation.suite import ChatCase, ToolCase, matches


@dataclass(frozen=True, slots=True)
class ToolScore:
    """How one case of a tools suite went.

    Attributes:
        selection: the right tool was called; None where none should be.
        rouge_l: of the arguments; None where no call should be.
        exact: the right tool with exactly the right arguments; None where no call should be.
        false_positive: something was called although no tool fits; None where a call should be.
        failed: the server gave no answer.
    """

    selection: bool | None
    rouge_l: float | None
    exact: bool | None
    false_positive: bool | None
    failed: bool


@dataclass(frozen=True, slots=True)
class ChatScore:
    """How one case of a chat suite went: `right`, and whether the server gave no answer."""

    right: bool
    failed: bool


def score_tool(case: ToolCase, answer: Answer) -> ToolScore:
    """Scores one answer; a failed request is neither a right call nor a false one."""
    failed = answer.error is not None
    if case.expected is None:
        # A server that fails has not held back: it must not look better for it.
        return ToolScore(None, None, None, None if failed else answer.tool is not None, failed)
    # The published script compares names without regard to case; a client could not call such a name: here it counts.
    selected = answer.tool == case.expected.name
    arguments = _parse(answer.arguments) if answer.tool is not None else None
    written = "" if arguments is None else canonical_json(arguments)
    likeness = rouge_l(written, canonical_json(case.expected.arguments))
    exact = selected and answer.num_calls == 1 and _same(arguments, case.expected.arguments)
    return ToolScore(selected, likeness, exact, None, failed)


def score_chat(case: ChatCase, answer: Answer) -> ChatScore:
    """Scores one answer."""
    right = answer.error is None and answer.tool is None and matches(answer.text, case.expected, case.match)
    return ChatScore(right, answer.error is not None)


def _parse(arguments: str) -> dict[str, Any] | None:
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _same(ours: Any, theirs: Any) -> bool:
    """Equal as JSON: true is not 1 (Python thinks so), 1.0 is 1."""
    if isinstance(ours, bool) or isinstance(theirs, bool):
        return ours is theirs
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(_same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    return bool(ours == theirs)


Figures = dict[str, float | int | None]


def summarise_tools(scores: Sequence[ToolScore]) -> Figures:
    """Figures of some cases; None where no case can tell."""
    return {
        "cases": len(scores),
        "tool_selection": _mean([s.selection for s in scores]),
        "rouge_l": _mean([s.rouge_l for s in scores]),
        "arguments_exact": _mean([s.exact for s in scores]),
        "false_positive_rate": _mean([s.false_positive for s in scores]),
        "failed": sum(s.failed for s in scores),
    }


def summarise_chat(scores: Sequence[ChatScore]) -> Figures:
    """Figures of some cases."""
    return {"cases": len(scores), "right": _mean([s.right for s in scores]), "failed": sum(s.failed for s in scores)}


def _mean(values: Sequence[float | bool | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None
