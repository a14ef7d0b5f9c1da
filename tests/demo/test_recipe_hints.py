"""Hints name the places that a call is made from, and the loss they lead to falls where heads look there."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from demo.recipe.corpus.document import Document, encode_document
from demo.recipe.corpus.tools import episodes
from demo.recipe.corpus.tools.react import Episode
from demo.recipe.training.attention_loss import HEADS, KNOWN_SHARE, AttentionLoss
from demo.recipe.training.attention_targets import (
    CHOSEN_TOOL,
    COPIED,
    DECIDED,
    IDLE_WORD,
    NOWHERE,
    TELLING_WORD,
    TOOL_OF_LINE,
    WORD_OF_TOOL,
    find_hints,
)
from demo.recipe.training.batches import encode_pool, pool_steps
from demo.recipe.training.model import ModelConfig, QwenForTraining
from model.contract.tokenizer import Tokenizer


def _episode(seed: int) -> Document:
    return episodes.single(Episode(random.Random(seed), "train", 3), after=1.0)


def _called(document: Document) -> str:
    return document.turns[-1].text.split("Action: ")[1].split("\n")[0]


@pytest.mark.parametrize("seed", range(10))
def test_what_is_copied_stands_where_the_hint_says(tokenizer: Tokenizer, seed: int):
    ids, weights = encode_document(_episode(seed), tokenizer)
    hints = find_hints(ids, tokenizer)
    copied = hints[hints[:, 0] == COPIED]
    assert len(copied)
    for _, query, begin, end, _ in copied:
        assert end == begin + 1 <= query + 1
        assert ids[begin] == ids[query + 1]
        assert weights[query + 1] == 1.0, "only what is learned has a source"


@pytest.mark.parametrize("seed", range(10))
def test_the_line_of_the_called_tool_is_chosen_when_it_is_named(tokenizer: Tokenizer, seed: int):
    document = _episode(seed)
    ids, _ = encode_document(document, tokenizer)
    hints = find_hints(ids, tokenizer)
    ((_, query, begin, end, known),) = hints[hints[:, 0] == CHOSEN_TOOL]
    assert known == query + 1
    line = tokenizer.decode(ids[begin:end])
    name = _called(document)
    assert line.strip().startswith(f"{name}: Call this tool to interact with the ")
    assert "Parameters: " in line and "\n\n" not in line.strip()
    assert tokenizer.decode(ids[query + 1 : query + 40]).lstrip().startswith(name)


def test_every_line_is_marked_with_its_tool(tokenizer: Tokenizer):
    ids, _ = encode_document(_episode(1), tokenizer)
    hints = find_hints(ids, tokenizer)
    marks = hints[hints[:, 0] == TOOL_OF_LINE]
    assert len(np.unique(marks[:, 2])) == 3
    for _, query, begin, _, known in marks:
        assert known == begin
        assert "\n\n" not in tokenizer.decode(ids[begin : query + 1]).rstrip("\n")


@pytest.mark.parametrize("seed", range(5))
def test_a_conversation_that_is_cut_off_has_hints_within_it(tokenizer: Tokenizer, seed: int):
    document = _episode(seed)
    question = document.turns[-2].text.split("Question: ")[-1]
    earlier = Document("x").user(question).assistant("No.")  # of words that tools are described with only later
    document.turns[1:1] = earlier.turns
    ids, weights = encode_document(document, tokenizer)
    for length in range(40, len(ids), 7):
        hints = find_hints(ids[:length], tokenizer)
        assert (hints[:, 2] <= hints[:, 1]).all(), "nobody looks ahead"
        assert (hints[:, 1:4] <= length).all()
        row = np.insert(hints.astype(np.int64), 0, 0, axis=1)
        batch = torch.tensor([ids[:length]]), torch.tensor([weights[:length]])
        attention_loss = AttentionLoss(torch.from_numpy(row), *batch)
        for layer in range(5):
            attention_loss.see(layer, torch.zeros(1, 4, length, 8), torch.zeros(1, 4, length, 8))
        assert math.isfinite(float(attention_loss.loss))


def test_conversations_without_tools_have_no_hints(tokenizer: Tokenizer):
    ids, _ = encode_document(Document("x").user("Action: f").assistant("Action: f"), tokenizer)
    assert find_hints(ids, tokenizer).shape == (0, 5)


def test_a_row_that_is_split_off_keeps_its_hints(ranks_file: Path):
    (step,) = pool_steps(encode_pool(3, 20_000, 40, str(ranks_file), 1024), 10**9)
    for batch in step:
        pieces = batch.split(1)
        assert torch.cat([piece.ids for piece in pieces]).equal(batch.ids)
        for row, piece in enumerate(pieces):
            mine = batch.hints[batch.hints[:, 0] == row]
            assert piece.hints[:, 1:].equal(mine[:, 1:])
            assert not piece.hints[:, 0].any()


def test_the_loss_is_the_attention_that_is_missing():
    layer, head = HEADS[COPIED]
    hints = torch.tensor([[0, COPIED, 5, 2, 3, -1], [0, COPIED, 5, 4, 5, -1], [1, COPIED, 3, 0, 1, -1]])
    ids, weights = torch.zeros(2, 8, dtype=torch.int64), torch.full((2, 8), 0.5)
    q, k = torch.zeros(2, head + 1, 8, 16), torch.zeros(2, head + 1, 8, 16)

    def loss() -> float:
        attention_loss = AttentionLoss(hints, ids, weights)
        for index in range(layer + 1):
            attention_loss.see(index, q, k)
        return float(attention_loss.loss)

    indifferent = loss()
    alone = AttentionLoss(hints, ids, weights)
    alone.see(layer + 1, q, k)
    assert float(alone.loss) == 0.0, "other layers are not told anything"
    # Two of six places in one row, one of four in the other; each at the weight of its token.
    share = indifferent / (0.5 * (math.log(6 / 2) + math.log(4)))
    q[0, head, 5], k[0, head, 2] = 3.0, 3.0
    q[1, head, 3], k[1, head, 0] = 3.0, 3.0
    assert loss() < 0.01 * indifferent
    k[0, head, 2], k[0, head, 7] = 0.0, 3.0  # what lies ahead cannot be seen, nor does it count
    assert loss() == pytest.approx(share * 0.5 * math.log(3), rel=1e-3)


@pytest.mark.parametrize("seed", range(10))
def test_words_of_a_question_know_whose_they_are(tokenizer: Tokenizer, seed: int):
    document = _episode(seed)
    ids, _ = encode_document(document, tokenizer)
    hints = find_hints(ids, tokenizer)
    header, question = document.turns[-2].text.split("Begin!\n\nQuestion: ")
    lines = {
        line.split(": ")[0]: line.split(" Parameters: ")[0] for line in header.split("\n\n") if ": Call this" in line
    }
    words = hints[hints[:, 0] == WORD_OF_TOOL]
    for _, asked, begin, _, known in words:
        assert tokenizer.token_bytes(ids[asked]).strip() in question.encode()
        (owner,) = (name for name in lines if tokenizer.decode(ids[known : known + 40]).lstrip().startswith(name))
        assert tokenizer.token_bytes(ids[begin]).strip() in lines[owner].encode()
    telling = _seen(hints, TELLING_WORD)
    called = {asked for _, asked, _, _, known in words if _starts_with(ids, known, _called(document), tokenizer)}
    assert {*telling[:, 2]} == called
    for _, asked, begin, end, _ in hints[hints[:, 0] == IDLE_WORD]:
        assert (begin, end) == NOWHERE
        assert tokenizer.token_bytes(ids[asked]).strip() in question.encode()


def _seen(hints: np.ndarray, kind: int) -> np.ndarray:
    """Those of a kind that name a place to see."""
    return hints[(hints[:, 0] == kind) & (hints[:, 3] != NOWHERE[1])]


def test_a_word_for_few_purposes_tells_the_tool_that_was_called(tokenizer: Tokenizer):
    text = (
        "Answer\n\nf_1: Call this tool to interact with the f_1 API. What is the f_1 API useful for? Forecast. "
        "Parameters: {}\n\ng_2: Call this tool to interact with the g_2 API. What is the g_2 API useful for? Sell. "
        "Parameters: {}\n\nBegin!\n\nQuestion: Should I take an umbrella?"
    )
    call = "Thought: I should use the f_1 tool.\nAction: f_1\nAction Input: {}\nObservation:"
    ids, _ = encode_document(Document("x").user(text).assistant(call), tokenizer)
    hints = find_hints(ids, tokenizer)
    ((_, asked, begin, end, known),) = hints[hints[:, 0] == WORD_OF_TOOL]
    assert "umbrella".endswith(tokenizer.decode([ids[asked]]).strip())
    assert begin == known
    assert tokenizer.decode(ids[begin:end]).strip().startswith("f_1: Call this tool")
    assert {*_seen(hints, TELLING_WORD)[:, 2]} == {asked}


def test_of_two_things_asked_each_word_tells_the_tool_of_its_half(tokenizer: Tokenizer):
    text = (
        "Answer\n\nf_1: Call this tool to interact with the f_1 API. What is the f_1 API useful for? Forecast. "
        "Parameters: {}\n\ng_2: Call this tool to interact with the g_2 API. What is the g_2 API useful for? Sell. "
        "Parameters: {}\n\nBegin!\n\nQuestion: Should I take an umbrella?%s mow the lawn"
    )
    calls = "".join(f"Thought: {n}\nAction: {n}\nAction Input: {{}}\nObservation: 1\n" for n in ("f_1", "g_2"))
    known_of = {}
    for joint in (" Then", " First"):  # the second says nothing about where the halves are
        ids, _ = encode_document(Document("x").user(text % joint).assistant(calls.strip()), tokenizer)
        hints = find_hints(ids, tokenizer)
        known_of[joint] = {
            tokenizer.decode([ids[asked]]).strip(): tokenizer.decode(ids[known : known + 9]).strip()[:3]
            for _, asked, _, _, known in hints[hints[:, 0] == WORD_OF_TOOL]
        }
    assert not known_of[" First"]
    (first,) = (word for word in known_of[" Then"] if "umbrella".endswith(word))
    assert known_of[" Then"].pop(first) == "f_1"
    assert {*known_of[" Then"].values()} == {"g_2"}


@pytest.mark.parametrize("seed", range(6))
def test_a_reply_is_decided_before_the_words_that_say_so(tokenizer: Tokenizer, seed: int):
    document = _episode(seed)
    ids, _ = encode_document(document, tokenizer)
    hints = find_hints(ids, tokenizer)
    decided = hints[hints[:, 0] == DECIDED]
    for _, query, begin, end, _ in decided:
        before = tokenizer.decode(ids[: query + 1]).rsplit("Thought:", 1)[1]
        assert before in ("", " ", " I"), "nothing is said yet"
        after = tokenizer.decode(ids[query + 1 :]).lstrip()
        if (begin, end) == NOWHERE:
            assert after.startswith(("I now know", "now know"))
        else:
            assert after.startswith(("I should", "should", "我应该", "Action:"))
            assert tokenizer.decode(ids[begin:end]).strip().startswith(f"{_called(document)}: Call this tool")
    assert {tuple(place) == NOWHERE for place in decided[:, 2:4].tolist()} == {True, False}


@pytest.mark.parametrize("seed", range(10))
def test_where_no_tool_fits_nothing_is_seen(tokenizer: Tokenizer, seed: int):
    document = episodes.no_call(Episode(random.Random(seed), "train", 2))
    hints = find_hints(encode_document(document, tokenizer)[0], tokenizer)
    for kind in (DECIDED, TELLING_WORD):
        assert len(hints[hints[:, 0] == kind])
        assert not len(_seen(hints, kind))
    assert not len(hints[hints[:, 0] == CHOSEN_TOOL])


def test_characters_of_several_tokens_are_words_too(tokenizer: Tokenizer):
    rare = "龘"
    assert len(tokenizer.encode(rare)) > 1
    text = (
        f"Answer\n\nf_1: Call this tool to interact with the f_1 API. What is the f_1 API useful for? {rare} "
        f"Parameters: {{}}\n\nBegin!\n\nQuestion: {rare}"
    )
    ids, _ = encode_document(Document("x").user(text).assistant("y"), tokenizer)
    ((_, asked, begin, end, _),) = (h for h in find_hints(ids, tokenizer) if h[0] == WORD_OF_TOOL)
    assert end == begin + 1
    assert ids[asked] == ids[begin] == tokenizer.encode(rare)[-1]


def _starts_with(ids: list[int], place: int, name: str, tokenizer: Tokenizer) -> bool:
    return tokenizer.decode(ids[place : place + 40]).lstrip().startswith(f"{name}: ")


def test_words_are_the_same_in_both_languages(tokenizer: Tokenizer):
    text = (
        "Answer\n\nf_1: Call this tool to interact with the f_1 API. What is the f_1 API useful for? Cancel a report. "
        "Parameters: {}\n\ng_2: Call this tool to interact with the g_2 API. What is the g_2 API useful for? 打开门禁 "
        "Parameters: {}\n\nBegin!\n\nQuestion: 请取消报告"
    )
    ids, _ = encode_document(Document("x").user(text).assistant("y"), tokenizer)
    hints = find_hints(ids, tokenizer)
    found = {
        (tokenizer.decode([ids[asked]]), tokenizer.decode([ids[begin]]).strip())
        for _, asked, begin, _, _ in hints[hints[:, 0] == WORD_OF_TOOL]
    }
    pointed = {there for _, there in found}
    assert "report" in pointed
    assert all("Cancel".endswith(there) for there in pointed - {"report"}), "at the last of a word's tokens"


def test_most_questions_have_telling_words(tokenizer: Tokenizer):
    told = 0
    for seed in range(60):
        hints = find_hints(encode_document(_episode(seed), tokenizer)[0], tokenizer)
        told += bool(len(_seen(hints, TELLING_WORD)))
    assert told > 45


def test_what_should_be_known_is_read_off_after_its_layer():
    layer, _ = HEADS[CHOSEN_TOOL]
    hints = torch.tensor([[0, CHOSEN_TOOL, 3, 0, 2, 4]])
    ids, weights = torch.tensor([[0, 1, 2, 3, 7, 5]]), torch.full((1, 6), 2.0)
    x = torch.zeros(1, 6, 8)

    def loss(at: int) -> float:
        attention_loss = AttentionLoss(hints, ids, weights)
        attention_loss.read(at, x, lambda known: known)
        return float(attention_loss.loss)

    assert loss(layer - 1) == 0.0
    assert loss(layer) == pytest.approx(2.0 * KNOWN_SHARE[CHOSEN_TOOL] * math.log(8))
    x[0, 3, 7] = 50.0  # the place knows the token that comes next
    assert loss(layer) < 1e-6


def test_told_heads_look_where_they_are_told(ranks_file: Path):
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=4352, hidden_size=64, num_hidden_layers=5, kv_channels=16, intermediate_size=128)
    model = QwenForTraining(config)
    (batches,) = pool_steps(encode_pool(3, 20_000, 6, str(ranks_file), 512), 10**9)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def step() -> float:
        optimizer.zero_grad()
        total = 0.0
        for batch in batches:
            attention_loss = AttentionLoss(batch.hints, batch.ids, batch.weights)
            model.loss(batch.ids, batch.weights, attention_loss)
            if len(batch.hints):
                attention_loss.loss.backward()
            total += float(attention_loss.loss.detach())
        optimizer.step()
        return total

    first = step()
    for _ in range(6):
        last = step()
    assert last < 0.8 * first
