"""The report of an evaluation: a table for people, and JSON with all figures and answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from model.contract.errors import ConfigError
from tools.evaluation.asking import Answer
from tools.evaluation.scores import Figures
from tools.evaluation.suite import ChatCase, ToolCase

CaseT = TypeVar("CaseT", ToolCase, ChatCase)
ScoreT = TypeVar("ScoreT")

_COLUMNS = {
    "tool_selection": "selection",
    "rouge_l": "Rouge-L",
    "arguments_exact": "exact",
    "false_positive_rate": "false pos.",
    "right": "right",
}


def build(
    cases: Sequence[CaseT],
    answers: Sequence[Answer],
    score: Callable[[CaseT, Answer], ScoreT],
    summarise: Callable[[Sequence[ScoreT]], Figures],
) -> dict[str, Any]:
    """Scores all answers and groups the figures.

    Returns:
        "all", "by_language", "by_category", "by_language_and_category" (figures each) and "answers", case by case.
    """
    scores = [score(case, answer) for case, answer in zip(cases, answers, strict=True)]

    def grouped(key: Callable[[CaseT], str]) -> dict[str, Figures]:
        groups: dict[str, list[ScoreT]] = {}
        for case, one in zip(cases, scores, strict=True):
            groups.setdefault(key(case), []).append(one)
        return {name: summarise(group) for name, group in groups.items()}

    return {
        "all": summarise(scores),
        "by_language": grouped(lambda case: case.language),
        "by_category": grouped(lambda case: case.category),
        "by_language_and_category": grouped(lambda case: f"{case.language} {case.category}"),
        "answers": [_detail(case, answer, one) for case, answer, one in zip(cases, answers, scores, strict=True)],
    }


def _detail(case: ToolCase | ChatCase, answer: Answer, score: Any) -> dict[str, Any]:
    got = {name: getattr(answer, name) for name in ("text", "tool", "arguments", "error") if getattr(answer, name)}
    expected = case.expected if isinstance(case.expected, str | None) else case.expected.model_dump()
    figures = {name: getattr(score, name) for name in score.__slots__ if getattr(score, name) is not None}
    return {"id": case.id, "expected": expected, "got": got, **figures}


def table(report: dict[str, Any]) -> str:
    """Returns the figures as text, one line for each language and category."""
    rows: list[tuple[str, Figures]] = []
    for group in ("by_language_and_category", "by_category", "by_language"):
        rows += list(report[group].items())
    rows.append(("all", report["all"]))
    columns = [name for name in _COLUMNS if any(figures.get(name) is not None for _, figures in rows)]
    width = max(len(name) for name, _ in rows)
    head = f"{'':<{width}}{'cases':>7}" + "".join(f"{_COLUMNS[name]:>12}" for name in columns) + f"{'failed':>8}"
    lines = [head]
    for number, (name, figures) in enumerate(rows):
        if number in (len(report["by_language_and_category"]), len(rows) - 1):
            lines.append("-" * len(head))
        cells = "".join(f"{_cell(figures[column]):>12}" for column in columns)
        lines.append(f"{name:<{width}}{figures['cases']:>7}{cells}{figures['failed'] or '':>8}")
    return "\n".join(lines)


def _cell(value: float | int | None) -> str:
    return "" if value is None else f"{100 * value:.1f}%"


def write(report: dict[str, Any], path: Path) -> None:
    """Writes the report as JSON; raises ConfigError if that fails."""
    try:
        path.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot write the report ({error.strerror})") from error
