"""A training text: ChatML turns with a weight on every piece, and how it becomes token ids.

Control tokens are written here alone; the contents of turns are encoded as ordinary text, each turn's
content in one piece, as the server does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from model.contract.tokenizer import Tokenizer

DEFAULT_SYSTEM = "You are a helpful assistant."

# Questions and descriptions are predicted too, at this weight: what people ask is learned from what tools say they do.
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
        category: for the evaluation table.
        answer: of an evaluation case: what the reply must be (see `evaluate.py`).
    """

    category: str
    turns: list[Turn] = field(default_factory=list)

    def system(self, text: str = DEFAULT_SYSTEM) -> Document:
        """Adds a system message."""
        self.turns.append(Turn("system", [(text, 0.0)]))
        return self

    def user(self, *spans: str | Span) -> Document:
        """Adds a user message; spans are hardly learned unless they carry a weight."""
        self.turns.append(Turn("user", [s if isinstance(s, tuple) else (s, HEARD) for s in spans]))
        return self

    def assistant(self, *spans: str | Span) -> Document:
        """Adds a reply; it is learned but for spans that say otherwise."""
        self.turns.append(Turn("assistant", [s if isinstance(s, tuple) else (s, 1.0) for s in spans]))
        return self

    def prompt_before_last_reply(self) -> str:
        """The text a server would feed for the last turn, control tokens by name."""
        parts = [f"<|im_start|>{t.role}\n{t.text}<|im_end|>\n" for t in self.turns[:-1]]
        return "".join(parts) + "<|im_start|>assistant\n"


def encode_document(document: Document, tokenizer: Tokenizer) -> tuple[list[int], list[float]]:
    """Returns token ids and, for each, the weight of learning to predict it."""
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
    """Token ids of everything before the last reply's content."""
    newline = tokenizer.encode("\n")
    ids: list[int] = []
    for turn in document.turns[:-1]:
        ids += [tokenizer.im_start_id, *tokenizer.encode(turn.role), *newline]
        ids += [*tokenizer.encode(turn.text), tokenizer.im_end_id, *newline]
    return [*ids, tokenizer.im_start_id, *tokenizer.encode("assistant"), *newline]


def _token_weights(spans: list[Span], content: list[int], tokenizer: Tokenizer) -> list[float]:
    """A token weighs as the span its last byte lies in (spans hold NFC text, as the tokenizer sees it)."""
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
