"""Short exchanges without tools, which also occur in conversations with tools."""

from __future__ import annotations

import random

from demo.recipe.corpus.chat.courtesies import about_itself, courtesy
from demo.recipe.corpus.chat.facts import arithmetic, capital, color_of, opposite, translate_word


def plain_exchange(rng: random.Random, lang: str, split: str, facts: bool = True) -> tuple[str, str]:
    """A question and its answer; without `facts`, none that a tool could answer."""
    topics = [courtesy, courtesy, about_itself]
    if facts:
        topics += [arithmetic, capital, opposite, translate_word, color_of]
    return rng.choice(topics)(rng, lang, split)
