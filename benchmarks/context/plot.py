"""Draws speed by the length of the context as SVG: two panels, ours and the peer's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_WIDTH, _HEIGHT = 360, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 34, 40
_LINES = (("ours", "", "#1f6feb"), ("llama.cpp", "peer_", "#8c6d31"))


def draw(figures: Mapping[str, Any]) -> str:
    """Returns the figures of `benchmarks.context` as an SVG file's text."""
    kind = f"{figures['shape']}, cache {figures['kv_cache_dtype']}"
    panels = [
        _panel(figures["rows"], name, f"{title}, tokens/s ({kind})", shift)
        for name, title, shift in (("decode", "Decode", 0), ("prefill", "Prefill", _WIDTH))
    ]
    size = f'width="{2 * _WIDTH}" height="{_HEIGHT}" viewBox="0 0 {2 * _WIDTH} {_HEIGHT}"'
    style = 'font-family="sans-serif" font-size="11"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>' + "".join(panels) + "</svg>\n"


def _panel(rows: list[Mapping[str, float]], name: str, title: str, shift: int) -> str:
    lengths = [row["length"] for row in rows]
    low, high = math.log2(min(lengths)), math.log2(max(lengths))
    values = [row[prefix + name] for row in rows for _, prefix, _ in _LINES if not math.isnan(row[prefix + name])]
    top = _round_up(max(values))

    def x(length: float) -> float:
        share = (math.log2(length) - low) / (high - low) if high > low else 0.5
        return shift + _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - value / top * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<text x="{shift + _LEFT}" y="18" font-weight="bold">{title}</text>']
    for i in range(5):
        value = top * i / 4
        right = shift + _WIDTH - _RIGHT
        parts.append(f'<line x1="{shift + _LEFT}" x2="{right}" y1="{y(value)}" y2="{y(value)}" stroke="#ccc"/>')
        parts.append(f'<text x="{shift + _LEFT - 6}" y="{y(value) + 4}" text-anchor="end">{value:g}</text>')
    parts += [f'<text x="{x(n)}" y="{_HEIGHT - 22}" text-anchor="middle">{n:,.0f}</text>' for n in lengths]
    parts.append(f'<text x="{shift + _WIDTH / 2}" y="{_HEIGHT - 6}" text-anchor="middle">tokens of context</text>')
    for number, (label, prefix, colour) in enumerate(_LINES):
        points = [(x(row["length"]), y(row[prefix + name])) for row in rows if not math.isnan(row[prefix + name])]
        if not points:
            continue
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in points]
        legend = shift + _WIDTH - _RIGHT - 60, _TOP + 12 + 14 * number
        parts.append(f'<text x="{legend[0]}" y="{legend[1]}" fill="{colour}">{label}</text>')
    return "".join(parts)


def _round_up(value: float) -> float:
    """The next of 1, 2, 4 or 8 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 8, 10) if step * power >= value)
