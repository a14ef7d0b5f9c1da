"""Compares two files of figures: what changed, and in which conditions the two runs differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tools.bench.report import LATENCIES, Figures, aligned, label

_RATES = {
    "output_tokens_per_s": "output tokens/s",
    "total_tokens_per_s": "total tokens/s",
    "requests_per_s": "requests/s",
}
_PERCENTILES = ("p50", "p90", "p99")
# Arguments that may differ between comparable runs.
_HARMLESS = frozenset(
    {"base_url", "plot", "num_requests", "tokens_per_word", "timeout_s", "concurrency", "request_rate"}
)


def read_figures(path: Path) -> Figures:
    """Reads a file written by --json.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    is_ours = isinstance(document, dict) and document.get("benchmark") == "serving"
    if not is_ours or not all(_is_level(level) for level in document.get("levels") or [None]):
        raise ValueError(f"{path}: not a file of figures made by `qwen-server bench --json`")
    return dict(document)


def _is_level(level: Any) -> bool:
    return (
        isinstance(level, dict)
        and ("concurrency" in level or "request_rate" in level)
        and all(isinstance(level.get(key), int | float) for key in (*_RATES, "completed", "failed"))
        and isinstance(level.get("latency"), dict)
    )


def comparison(before: Figures, after: Figures) -> str:
    """Returns a table of two runs, level by level.

    Raises:
        ValueError: the runs have no level in common.
    """
    others = {label(level): level for level in after["levels"]}
    pairs = [(level, others[label(level)]) for level in before["levels"] if label(level) in others]
    if not pairs:
        ours, theirs = (", ".join(label(level) for level in run["levels"]) for run in (before, after))
        raise ValueError(f"the two files have no level in common: {ours}; and {theirs}")
    rows = [["", "", "first", "second", "change"]]
    for first, second in pairs:
        rows += _level_rows(first, second)
    return "\n".join([*_warnings(before, after), *aligned(rows, num_left=2)])


def _level_rows(first: Figures, second: Figures) -> list[list[str]]:
    name = label(first)
    rows = [[name, title, *_change(first[key], second[key])] for key, title in _RATES.items()]
    for key, title in LATENCIES.items():
        ours, theirs = first["latency"].get(key), second["latency"].get(key)
        if ours and theirs:
            rows += [[name, f"{title}, {p}, ms", *_change(ours[p] * 1e3, theirs[p] * 1e3)] for p in _PERCENTILES]
    if first["failed"] or second["failed"]:
        rows.append([name, "failed requests", str(first["failed"]), str(second["failed"]), ""])
    return rows


def _change(first: float, second: float) -> list[str]:
    change = f"{(second / first - 1):+.1%}" if first else "-"
    digits = 2 if max(first, second) < 10 else 1
    return [f"{first:.{digits}f}", f"{second:.{digits}f}", change]


def _warnings(before: Figures, after: Figures) -> list[str]:
    lines = []
    for key, what in (("hardware", "machines"), ("parameters", "requests")):
        ours, theirs = before.get(key) or {}, after.get(key) or {}
        names = sorted((set(ours) | set(theirs)) - _HARMLESS)
        differing = [name for name in names if ours.get(name) != theirs.get(name)]
        if differing:
            shown = "; ".join(f"{name} {ours.get(name)!r} and {theirs.get(name)!r}" for name in differing)
            lines.append(f"Not the same {what}: {shown}.")
    if before.get("interrupted") or after.get("interrupted"):
        lines.append("One of the two was interrupted.")
    return [*lines, ""] if lines else []
