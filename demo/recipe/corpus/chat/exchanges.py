"""Conversations without tools: the door to the topics, and the short exchanges that also occur amid tools."""

from __future__ import annotations

import random

from demo.recipe.corpus.chat.courtesies import about_itself, courtesy
from demo.recipe.corpus.chat.facts import arithmetic, capital, color_of, opposite, translate_word


def plain_exchange(rng: random.Random, lang: str, split: str, facts: bool = True) -> tuple[str, str]:
    """A question anyone may ask at any time, and its answer; without `facts` nothing a tool could be asked for."""
    topics = [courtesy, courtesy, about_itself]
    if facts:
        topics += [arithmetic, capital, opposite, translate_word, color_of]
    return rng.choice(topics)(rng, lang, split)
