"""The whole corpus as one endless, seeded stream of documents.

Each document has its own random generator, seeded with the document's number. So the stream can be entered anywhere and
is the same on every machine. Nothing is stored, and documents do not repeat.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from demo.recipe.corpus.chat import courtesies, creative, facts, memory, more, rules, texts
from demo.recipe.corpus.document import Document
from demo.recipe.corpus.split import TRAIN
from demo.recipe.corpus.tools import episodes, math_episodes
from demo.recipe.corpus.tools.react import Episode

T = TypeVar("T")

# Shares of the documents (tool episodes are about five times as long as the others).
TOOL_KINDS = [
    (episodes.single, 22),
    (episodes.no_call, 14),
    (episodes.two_calls, 14),
    (episodes.chained, 12),
    (episodes.conversation, 20),
    (episodes.drill, 28),
    (episodes.calculator, 4),
]
CHAT_KINDS: list[tuple[Callable[[random.Random, str], Document], float]] = [
    (courtesies.small_talk, 14),
    (facts.question, 22),
    (facts.sums, 18),
    (memory.remember, 20),
    (memory.in_one_message, 8),
    (texts.copying, 14),
    (texts.listing, 5),
    (texts.json_answer, 8),
    (creative.story, 4),
    (creative.code, 5),
    (rules.system_rule, 10),
    (rules.persona, 6),
    *more.KINDS,
]
CURRICULUM_DOCUMENTS = 15_000
GENERIC_SHARE = 0.28  # share of tools with invented purposes


def _weighted(rng: random.Random, kinds: Sequence[tuple[T, float]]) -> T:
    return rng.choices([k for k, _ in kinds], [w for _, w in kinds])[0]


def chat_document(rng: random.Random, split: str) -> Document:
    """A conversation without tools."""
    return _weighted(rng, CHAT_KINDS)(rng, split)


def tool_document(rng: random.Random, split: str, ripeness: float = 1.0) -> Document:
    """A conversation with tools. At low `ripeness` (0 to 1) there are few tools, tersely described."""
    if rng.random() < 0.07:
        return math_episodes.math_tools(rng, split)
    kind = _weighted(rng, TOOL_KINDS)
    most = 2 if ripeness < 0.3 else 3 if ripeness < 0.7 else 4
    num_tools = rng.randint(1, most) if rng.random() > 0.06 * ripeness else rng.randint(5, 7)
    if kind in (episodes.two_calls, episodes.chained, episodes.drill):
        num_tools = max(num_tools, 2)
    if kind is episodes.drill:
        num_tools += rng.choice([0, 1, 2]) if ripeness == 1.0 else 0
    return kind(Episode(rng, split, num_tools, 0.55 * ripeness, GENERIC_SHARE))


def make_document(seed: int, number: int, split: str = TRAIN) -> Document:
    """Returns the document of a number. Early ones are short copying tasks and terse tools, later ones all kinds."""
    rng = random.Random(f"{seed}/{split}/{number}")
    ripeness = min(1.0, number / CURRICULUM_DOCUMENTS) if split == TRAIN else 1.0
    if rng.random() < 0.35 * (1 - ripeness) ** 2:
        return texts.copying(rng, split)
    return tool_document(rng, split, ripeness) if rng.random() < 0.46 else chat_document(rng, split)
