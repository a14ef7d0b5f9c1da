"""Training asks for tools in other words than they describe themselves with; the evaluation does not."""

from __future__ import annotations

import random
import re

import pytest

from demo.recipe.corpus.document import Document, encode_document
from demo.recipe.corpus.hard_texts import _kept
from demo.recipe.corpus.split import HELD_OUT, TRAIN, is_held_out
from demo.recipe.corpus.templates import say, texts
from demo.recipe.corpus.tools import related
from demo.recipe.corpus.tools.domains import Domain
from demo.recipe.corpus.tools.invented import commander, finder, getter
from demo.recipe.corpus.tools.purpose_words import NOUNS, PROPERTIES, VERBS
from demo.recipe.training.attention_targets import WORD_OF_TOOL, find_hints
from model.contract.tokenizer import Tokenizer

TABLES = {"v": VERBS, "n": NOUNS, "p": PROPERTIES}


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


@pytest.mark.parametrize("mark", TABLES)
def test_other_words_are_for_entries_that_training_draws(mark: str):
    drawn = {entry[0] for entry in TABLES[mark] if not is_held_out(str(entry))}
    assert related._table()[mark].keys() <= drawn


def test_no_word_of_the_evaluation_is_among_them():
    kept = _kept()
    for mark, rows in related._table().items():
        for english, chinese in rows.values():
            said = english + chinese if mark != "p" else [t for line in english + chinese for t in texts(line)]
            for text in said:
                assert not _words(text) & kept, text
                assert not any(word in text for word in kept if word[0] > "一"), text


def test_templates_name_whose_it_is():
    for english, chinese in related.properties().values():
        for template in (english, chinese):
            assert all("WHO" in say(template, random.Random(seed), v="WHO") for seed in range(30)), template


def _asks_in_its_own_words(domain: Domain) -> bool:
    return all(domain.human.lower() in line for line in domain.lines["q"])


@pytest.mark.parametrize("shape", [commander, getter, finder])
def test_only_training_asks_otherwise(shape):
    rng = random.Random(1)
    own = {split: sum(_asks_in_its_own_words(shape(rng, split)) for _ in range(300)) for split in (TRAIN, HELD_OUT)}
    assert own[HELD_OUT] == 300
    assert own[TRAIN] < 285


def test_other_words_point_at_what_they_stand_for(tokenizer: Tokenizer):
    english, chinese = related.meanings()
    assert english["lily"] == "flower" and chinese["百合"] == "flower"
    for own in (entry for table in TABLES.values() for entry in table):
        assert not english.keys() & {*own[0].split()} and own[1] not in chinese, own
    text = (
        "Answer\n\nf_1: Call this tool to interact with the f_1 API. What is the f_1 API useful for? Find a flower. "
        "Parameters: {}\n\ng_2: Call this tool to interact with the g_2 API. What is the g_2 API useful for? "
        "Move a bell. Parameters: {}\n\nBegin!\n\nQuestion: "
    )
    for question in ("Give me a lily", "我要百合"):
        ids, _ = encode_document(Document("x").user(text + question).assistant("y"), tokenizer)
        hints = find_hints(ids, tokenizer)
        pointed = {tokenizer.decode([ids[begin]]).strip() for _, _, begin, _, _ in hints[hints[:, 0] == WORD_OF_TOOL]}
        assert len(pointed) == 1 and "flower".endswith(pointed.pop()), question
