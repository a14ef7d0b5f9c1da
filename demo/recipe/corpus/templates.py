"""A small template language: one line of a table expands to dozens of wordings.

`(a|b|c)` is a choice, `[text]` or `[a|b]` is optional, `{name}` stands for a value, and `{name=literal}` sets a value
without any text. Brackets may be nested. All choices come from the caller's random generator.
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any

Node = tuple[str, Any]  # ("text", str) | ("slot", str) | ("alt", list[list[Node]]) | ("opt", list[Node])


@lru_cache(maxsize=8192)
def parse(template: str) -> list[Node]:
    """Parses a template; unbalanced brackets raise ValueError."""
    nodes, end = _sequence(template, 0, "")
    if end != len(template):
        raise ValueError(f"unbalanced brackets in {template!r}")
    return nodes


def _sequence(text: str, at: int, closers: str) -> tuple[list[Node], int]:
    nodes: list[Node] = []
    plain = ""
    while at < len(text) and text[at] not in closers:
        char = text[at]
        if char not in "([{":
            plain += char
            at += 1
            continue
        if plain:
            nodes.append(("text", plain))
            plain = ""
        if char == "{":
            end = text.index("}", at)
            nodes.append(("slot", text[at + 1 : end]))
            at = end + 1
        else:
            closer = "]" if char == "[" else ")"
            choices, at = _alternatives(text, at + 1, closer)
            nodes.append(("alt", choices) if char == "(" else ("opt", [("alt", choices)]))
    if plain:
        nodes.append(("text", plain))
    return nodes, at


def _alternatives(text: str, at: int, closer: str) -> tuple[list[list[Node]], int]:
    choices = []
    while True:
        inner, at = _sequence(text, at, "|" + closer)
        choices.append(inner)
        if at >= len(text) or text[at] != "|":
            return choices, _close(text, at, closer)
        at += 1


def _close(text: str, at: int, closer: str) -> int:
    if at >= len(text) or text[at] != closer:
        raise ValueError(f"missing {closer!r} in {text!r}")
    return at + 1


def choose(template: str, rng: random.Random, keep: float = 0.4) -> list[str | tuple[str]]:
    """Makes the choices of a template.

    Args:
        keep: probability of keeping an optional part.

    Returns:
        Pieces in order: a str is text, a 1-tuple names a slot.
    """
    out: list[str | tuple[str]] = []
    _choose(parse(template), rng, keep, out)
    return out


def _choose(nodes: list[Node], rng: random.Random, keep: float, out: list[str | tuple[str]]) -> None:
    for kind, content in nodes:
        if kind == "text":
            out.append(content)
        elif kind == "slot":
            out.append((content,))
        elif kind == "opt":
            if rng.random() < keep:
                _choose(content, rng, keep, out)
        else:
            _choose(rng.choice(content), rng, keep, out)


def say(template: str, rng: random.Random, **values: object) -> str:
    """Expands a template whose slots are all given by keyword."""
    return "".join(p if isinstance(p, str) else str(values[p[0]]) for p in choose(template, rng, 0.5))


def texts(template: str) -> list[str]:
    """Returns all text parts of a template."""

    def walk(nodes: list[Node]) -> list[str]:
        found = []
        for kind, content in nodes:
            if kind == "text":
                found.append(content)
            elif kind == "opt":
                found += walk(content)
            elif kind == "alt":
                for choice in content:
                    found += walk(choice)
        return found

    return walk(parse(template))
