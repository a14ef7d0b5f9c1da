"""A training document: ChatML turns with weighted pieces, and their encoding as token ids.

Only this file writes control tokens. The content of each turn is encoded in one piece as ordinary text, as in the
server.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from model.contract.tokenizer import Tokenizer

DEFAULT_SYSTEM = "You are a helpful assistant."

# Weight of predicting questions and descriptions: predicting questions teaches how they relate to tools' descriptions.
HEARD = 0.1
Span = tuple[str, float]


@dataclass
class Turn:
    """One message: its role and its text in spans of equal weight."""

    role: str
    spans: list[Span]

    @property
    def text(self) -> str:
        """The whole content."""
        return "".join(text for text, _ in self.spans)


@dataclass
class Document:
    """A conversation to learn from.

    Attributes:
        category: a row of the evaluation's table.
    """

    category: str
    turns: list[Turn] = field(default_factory=list)

    def system(self, text: str = DEFAULT_SYSTEM) -> Document:
        """Adds a system message."""
        self.turns.append(Turn("system", [(text, 0.0)]))
        return self

    def user(self, *spans: str | Span) -> Document:
        """Adds a user message; spans without a weight get the low weight `HEARD`."""
        self.turns.append(Turn("user", [s if isinstance(s, tuple) else (s, HEARD) for s in spans]))
        return self

    def assistant(self, *spans: str | Span) -> Document:
        """Adds a reply; spans without a weight are learned fully."""
        self.turns.append(Turn("assistant", [s if isinstance(s, tuple) else (s, 1.0) for s in spans]))
        return self

    def prompt_before_last_reply(self) -> str:
        """Returns the prompt of the last reply as text, with control tokens by name."""
        parts = [f"<|im_start|>{t.role}\n{t.text}<|im_end|>\n" for t in self.turns[:-1]]
        return "".join(parts) + "<|im_start|>assistant\n"


def begin_chat(category: str, rng: random.Random) -> Document:
    """Begins a conversation, mostly with the default system message."""
    document = Document(category)
    return document.system() if rng.random() < 0.92 else document


def encode_document(document: Document, tokenizer: Tokenizer) -> tuple[list[int], list[float]]:
    """Returns token ids and, for each, the weight of predicting it."""
    newline = tokenizer.encode("\n")
    ids: list[int] = []
    weights: list[float] = []

    def add(new: list[int], weight: float | list[float]) -> None:
        ids.extend(new)
        weights.extend(weight if isinstance(weight, list) else [weight] * len(new))

    for turn in document.turns:
        add([tokenizer.im_start_id], 0.0)
        add(tokenizer.encode(turn.role), 0.0)
        add(newline, 0.0)
        content = tokenizer.encode(turn.text)
        add(content, _token_weights(turn.spans, content, tokenizer))
        learned = turn.role == "assistant" and turn.spans[-1][1] > 0
        add([tokenizer.im_end_id], 1.0 if learned else 0.0)
        add(newline, 0.0)
    return ids[:-1], weights[:-1]


def encode_prompt(document: Document, tokenizer: Tokenizer) -> list[int]:
    """Returns the token ids of everything before the content of the last reply."""
    newline = tokenizer.encode("\n")
    ids: list[int] = []
    for turn in document.turns[:-1]:
        ids += [tokenizer.im_start_id, *tokenizer.encode(turn.role), *newline]
        ids += [*tokenizer.encode(turn.text), tokenizer.im_end_id, *newline]
    return [*ids, tokenizer.im_start_id, *tokenizer.encode("assistant"), *newline]


def _token_weights(spans: list[Span], content: list[int], tokenizer: Tokenizer) -> list[float]:
    """Gives each token the weight of the span that has its last byte. Spans are NFC text, as tokenizer input is."""
    first = spans[0][1]
    if all(weight == first for _, weight in spans):
        return [first] * len(content)
    ends: list[tuple[int, float]] = []
    total = 0
    for text, weight in spans:
        total += len(text.encode())
        ends.append((total, weight))
    weights = []
    at = span = 0
    for token in content:
        at += len(tokenizer.token_bytes(token))
        while span < len(ends) - 1 and at > ends[span][0]:
            span += 1
        weights.append(ends[span][1])
    return weights
