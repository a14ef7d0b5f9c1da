"""Computes the figures of a level from its records, and prints them as a table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tools.bench.load import Level
from tools.bench.reply import Record

_PERCENTILES = (50, 90, 95, 99)
_SHOWN = ("mean", "p50", "p90", "p99")
LATENCIES = {
    "ttft_s": "time to first token",
    "inter_token_s": "between token events",
    "per_output_token_s": "per output token",
    "end_to_end_s": "end to end",
}
_BUSY_CLIENT = 0.8  # above this share of a core, the client itself may be the bottleneck

Figures = dict[str, Any]


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Returns a percentile, with linear interpolation (numpy's default).

    Args:
        ordered: at least one value, in ascending order.
        percent: 0 to 100.
    """
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def describe(values: Sequence[float]) -> Figures | None:
    """Returns mean, percentiles and extremes, or None without values."""
    if not values:
        return None
    ordered = sorted(values)
    figures: Figures = {"count": len(ordered), "mean": math.fsum(ordered) / len(ordered)}
    figures |= {f"p{percent}": percentile(ordered, percent) for percent in _PERCENTILES}
    return figures | {"min": ordered[0], "max": ordered[-1]}


def summarise(level: Level, name: Figures) -> Figures:
    """Returns the figures of a level, named as by {"concurrency": 4}.

    Only completed requests count towards throughput and latencies.
    """
    completed = [record for record in level.records if record.error is None]
    duration = level.duration or math.inf
    num_output = sum(record.output_tokens for record in completed)
    num_prompt = sum(record.prompt_tokens for record in completed)
    return {
        **name,
        "completed": len(completed),
        "failed": len(level.records) - len(completed),
        "unfinished": level.num_unfinished,
        "errors": _errors(level.records),
        "duration_s": level.duration,
        "prompt_tokens": num_prompt,
        "cached_tokens": sum(record.cached_tokens for record in completed),
        "output_tokens": num_output,
        "tokens_counted_by": "usage" if all(record.is_counted for record in completed) else "events",
        "output_tokens_per_s": num_output / duration,
        "total_tokens_per_s": (num_prompt + num_output) / duration,
        "requests_per_s": len(completed) / duration,
        "client_cpu_share": level.client_cpu_s / duration,
        "latency": {
            "ttft_s": describe([record.ttft for record in completed if record.ttft is not None]),
            "inter_token_s": describe([gap for record in completed for gap in record.gaps]),
            "per_output_token_s": describe([r.per_output_token for r in completed if r.per_output_token is not None]),
            "end_to_end_s": describe([record.duration for record in completed]),
        },
    }


def _errors(records: Sequence[Record]) -> Figures:
    failed = [record for record in records if record.error is not None]
    details = {record.error: record.detail for record in reversed(failed)}
    counts = Counter(record.error for record in failed)
    return {str(kind): {"count": count, "first": details[kind]} for kind, count in counts.most_common()}


def raw(level: Level) -> list[Figures]:
    """Returns the records of the requests, in the order in which they began."""
    return [asdict(record) for record in sorted(level.records, key=lambda record: record.started)]


def add_ratios(levels: list[Figures]) -> None:
    """Adds to each level the ratio of its throughput to that of the first."""
    first = levels[0]["output_tokens_per_s"]
    for level in levels:
        level["ratio_to_first"] = level["output_tokens_per_s"] / first if first else None


def table(levels: list[Figures]) -> str:
    """Returns the figures of all levels as text."""
    lines = [*_throughput(levels), "", *_latencies(levels)]
    for level in levels:
        for kind, error in level["errors"].items():
            detail = f": {error['first']}" if error["first"] else ""
            lines.append(f"{label(level)}: {error['count']} failed, {kind}{detail}")
        if level["unfinished"]:
            lines.append(f"{label(level)}: interrupted; {level['unfinished']} unfinished requests are not counted")
        if level["client_cpu_share"] > _BUSY_CLIENT:
            share = f"{level['client_cpu_share']:.0%}"
            lines.append(f"{label(level)}: this client used {share} of a core and may be what limits")
        if level["completed"] and level["tokens_counted_by"] == "events":
            lines.append(f"{label(level)}: the server reports no usage; output tokens are counted by events")
    return "\n".join(lines)


def label(level: Figures) -> str:
    """Returns the name of a level."""
    name, value = ("concurrency", level["concurrency"]) if "concurrency" in level else ("rate", level["request_rate"])
    return f"{name} {value:g}"


def _throughput(levels: list[Figures]) -> list[str]:
    rows = [["", "requests", "failed", "output tok/s", "total tok/s", "requests/s", "tokens in/out", "cached", "times"]]
    for level in levels:
        completed = level["completed"] or 1
        ratio = level.get("ratio_to_first")
        row = [label(level), str(level["completed"]), str(level["failed"])]
        row += [f"{level[key]:.1f}" for key in ("output_tokens_per_s", "total_tokens_per_s")]
        row += [f"{level['requests_per_s']:.2f}"]
        row += [f"{level['prompt_tokens'] / completed:.0f}/{level['output_tokens'] / completed:.0f}"]
        row += [f"{level['cached_tokens'] / (level['prompt_tokens'] or 1):.0%}", f"{ratio:.1f} x" if ratio else "-"]
        rows.append(row)
    return aligned(rows)


def _latencies(levels: list[Figures]) -> list[str]:
    rows = [["milliseconds", "", *_SHOWN, "max"]]
    for level in levels:
        for key, title in LATENCIES.items():
            figures = level["latency"][key]
            shown = [f"{figures[name] * 1e3:.1f}" if figures else "-" for name in (*_SHOWN, "max")]
            rows.append([label(level), title, *shown])
    return aligned(rows, num_left=2)


def aligned(rows: list[list[str]], num_left: int = 1) -> list[str]:
    """Returns the lines of a table, its columns aligned.

    Args:
        rows: all must have the same number of cells.
        num_left: how many columns are aligned to the left.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i < num_left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
