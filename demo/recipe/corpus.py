"""The whole corpus as one endless, seeded stream of documents.

Every document is made from a generator of its own, seeded with its number, so the stream can be entered
anywhere and is the same on every machine. Nothing is stored and nothing repeats by design.
"""

from __future__ import annotations

import random

from demo.recipe import chat_creative, chat_facts, chat_memory, chat_more, chat_rules, chat_small, chat_text, episodes
from demo.recipe.document import Document
from demo.recipe.react import Episode
from demo.recipe.values import TRAIN

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
CHAT_KINDS = [
    (chat_small.small_talk, 14),
    (chat_facts.question, 22),
    (chat_facts.sums, 18),
    (chat_memory.remember, 20),
    (chat_memory.in_one_message, 8),
    (chat_text.copying, 14),
    (chat_text.listing, 5),
    (chat_text.json_answer, 8),
    (chat_creative.story, 4),
    (chat_creative.code, 5),
    (chat_rules.system_rule, 10),
    (chat_rules.persona, 6),
    *chat_more.KINDS,
]
CURRICULUM_DOCUMENTS = 15_000
GENERIC_SHARE = 0.28  # of the tools have purposes that are made up on the spot


def _weighted(rng: random.Random, kinds: list) -> object:
    return rng.choices([k for k, _ in kinds], [w for _, w in kinds])[0]


def chat_document(rng: random.Random, split: str) -> Document:
    """A conversation without tools."""
    return _weighted(rng, CHAT_KINDS)(rng, split)  # type: ignore[operator]


def tool_document(rng: random.Random, split: str, ripeness: float = 1.0) -> Document:
    """A conversation with tools; with little ripeness few tools, tersely described."""
    if rng.random() < 0.07:
        return episodes.math_tools(rng, split)
    kind = _weighted(rng, TOOL_KINDS)
    most = 2 if ripeness < 0.3 else 3 if ripeness < 0.7 else 4
    num_tools = rng.randint(1, most) if rng.random() > 0.06 * ripeness else rng.randint(5, 7)
    if kind in (episodes.two_calls, episodes.chained, episodes.drill):
        num_tools = max(num_tools, 2)
    if kind is episodes.drill:
        num_tools += rng.choice([0, 1, 2]) if ripeness == 1.0 else 0
    return kind(Episode(rng, split, num_tools, 0.55 * ripeness, GENERIC_SHARE))  # type: ignore[operator]


def make_document(seed: int, number: int, split: str = TRAIN) -> Document:
    """The document of a number. Early numbers are short copying tasks and terse tools, later ones the full mixture."""
    rng = random.Random(f"{seed}/{split}/{number}")
    ripeness = min(1.0, number / CURRICULUM_DOCUMENTS) if split == TRAIN else 1.0
    if rng.random() < 0.35 * (1 - ripeness) ** 2:
        return chat_text.copying(rng, split)
    return tool_document(rng, split, ripeness) if rng.random() < 0.46 else chat_document(rng, split)
