"""Scores answers: the three published figures for tools, and the share of right replies for chats."""

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
    """The score of one case of a tools suite.

    Attributes:
        selection: the right tool was called; None if no call is expected.
        rouge_l: Rouge-L of the arguments; None if no call is expected.
        exact: the right tool was called with exactly the right arguments; None if no call is expected.
        false_positive: a tool was called although none fits; None if a call is expected.
        failed: the request failed.
    """

    selection: bool | None
    rouge_l: float | None
    exact: bool | None
    false_positive: bool | None
    failed: bool


@dataclass(frozen=True, slots=True)
class ChatScore:
    """The score of one case of a chat suite; `failed` means that the request failed."""

    right: bool
    failed: bool


def score_tool(case: ToolCase, answer: Answer) -> ToolScore:
    """Scores one answer. A failed request is neither a right call nor a false positive."""
    failed = answer.error is not None
    if case.expected is None:
        # A failure is not a correctly omitted call: it must not improve the figure.
        return ToolScore(None, None, None, None if failed else answer.tool is not None, failed)
    # The published script ignores the case of names. Here case counts, as clients could not call a misspelt name.
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
    """Whether two values are equal as JSON: true differs from 1 (not in Python), 1.0 equals 1."""
    if isinstance(ours, bool) or isinstance(theirs, bool):
        return ours is theirs
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(_same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    return bool(ours == theirs)


Figures = dict[str, float | int | None]


def summarise_tools(scores: Sequence[ToolScore]) -> Figures:
    """Returns the figures of some cases; None for a figure that applies to none of them."""
    return {
        "cases": len(scores),
        "tool_selection": _mean([s.selection for s in scores]),
        "rouge_l": _mean([s.rouge_l for s in scores]),
        "arguments_exact": _mean([s.exact for s in scores]),
        "false_positive_rate": _mean([s.false_positive for s in scores]),
        "failed": sum(s.failed for s in scores),
    }


def summarise_chat(scores: Sequence[ChatScore]) -> Figures:
    """Returns the figures of some cases."""
    return {"cases": len(scores), "right": _mean([s.right for s in scores]), "failed": sum(s.failed for s in scores)}


def _mean(values: Sequence[float | bool | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None
