"""Conversations without tools from the held-out side, by category."""

from __future__ import annotations

import random

from demo.recipe.corpus.chat import courtesies, creative, facts, memory, rules, texts
from demo.recipe.corpus.document import Document
from demo.recipe.corpus.split import HELD_OUT

CHAT_KINDS = {
    "identity": courtesies.small_talk,
    "arithmetic": facts.question,
    "facts": facts.question,
    "memory": memory.remember,
    "system prompt": rules.system_rule,
    "json": texts.json_answer,
    "copying": texts.copying,
    "small talk": courtesies.small_talk,
    "refusals": courtesies.small_talk,
    "lists": texts.listing,
    "code": creative.code,
    "stories": creative.story,
}


def chat_document(category: str, rng: random.Random) -> Document:
    """Returns a random conversation, mostly of the category: some kinds make several."""
    make = CHAT_KINDS[category]
    if category == "system prompt" and rng.random() < 0.4:
        make = rules.persona
    elif category == "memory" and rng.random() < 0.3:
        make = memory.in_one_message
    return make(rng, HELD_OUT)
