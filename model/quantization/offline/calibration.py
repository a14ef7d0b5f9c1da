"""Makes the token ids that a checkpoint is calibrated with: pieces of equal length out of one long row of text."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from model.contract.errors import ConfigError
from model.contract.tokenizer import Tokenizer
from model.quantization.offline.calibration_text import Message, conversations

# Text is tokenised until there are this many times the tokens needed, so that pieces can be chosen.
_CHOICE = 2
# As the published fine-tuning script writes them; the other names are those of ShareGPT's files.
_DEFAULT_SYSTEM = "You are a helpful assistant."
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}


def calibration_samples(
    tokenizer: Tokenizer, path: Path | None, *, num_samples: int, sample_length: int, seed: int
) -> torch.Tensor:
    """Chooses pieces of text.

    Args:
        path: plain text, JSONL (`.jsonl`) or a JSON list (`.json`) of entries with `text`, `messages`, or
            `conversations` as the published fine-tuning script has them; None takes the built-in text.
        num_samples: the most pieces.
        sample_length: tokens in a piece.
        seed: decides which pieces are chosen.

    Returns:
        [pieces, sample_length] int64, at least one piece.

    Raises:
        ConfigError: the file cannot be read or holds less than one piece.
    """
    documents = _built_in(tokenizer, seed) if path is None else _from_file(tokenizer, path)
    wanted = num_samples * sample_length * _CHOICE
    ids: list[int] = []
    for document in documents:
        ids += document
        if path is None and len(ids) >= wanted:
            break
    num_pieces = len(ids) // sample_length
    if num_pieces == 0:
        raise ConfigError(
            f"{path}: holds {len(ids)} tokens, but a piece has {sample_length}; give more text or lower --sample-length"
        )
    chosen = sorted(random.Random(seed).sample(range(num_pieces), min(num_samples, num_pieces)))
    return torch.tensor([ids[n * sample_length : (n + 1) * sample_length] for n in chosen], dtype=torch.int64)


def _built_in(tokenizer: Tokenizer, seed: int) -> Iterator[list[int]]:
    for turns in conversations(seed):
        yield _chat(tokenizer, turns)


def _chat(tokenizer: Tokenizer, turns: list[Message]) -> list[int]:
    newline = tokenizer.encode("\n")
    ids: list[int] = []
    for role, text in turns:
        ids += [tokenizer.im_start_id, *tokenizer.encode(f"{role}\n{text}"), tokenizer.im_end_id, *newline]
    return ids


def _from_file(tokenizer: Tokenizer, path: Path) -> Iterator[list[int]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as e:
        raise ConfigError(f"{path}: cannot read the calibration text ({e})") from e
    if path.suffix not in (".json", ".jsonl"):
        yield tokenizer.encode(text)
        return
    entries = _listed(text) if path.suffix == ".json" else None
    if entries is not None:
        for number, entry in enumerate(entries, start=1):
            yield _from_entry(tokenizer, entry, f"{path}, entry {number}")
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"{path}, line {number}"
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as e:
                raise ConfigError(f"{place}: not JSON ({e})") from e
            yield _from_entry(tokenizer, entry, place)


def _listed(text: str) -> list[Any] | None:
    """Reads the entries of a JSON file; None where it is not one JSON value, but perhaps one a line."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else [value]


def _from_entry(tokenizer: Tokenizer, entry: Any, place: str) -> list[int]:
    fields = entry if isinstance(entry, dict) else {}
    if isinstance(fields.get("text"), str):
        return [*tokenizer.encode(fields["text"]), tokenizer.endoftext_id]
    turns = _turns(fields.get("messages"), "role", "content")
    if turns is None:
        turns = _turns(fields.get("conversations"), "from", "value")
        if turns and turns[0][0] != "system":
            turns.insert(0, ("system", _DEFAULT_SYSTEM))
    if turns is None:
        raise ConfigError(
            f"{place}: needs `text`, `messages` with a `role` and a `content` each, or `conversations` with a `from`"
            " and a `value` each"
        )
    return _chat(tokenizer, turns)


def _turns(value: Any, role: str, content: str) -> list[Message] | None:
    """Reads a conversation; None where it is none."""
    if not isinstance(value, list) or not all(
        isinstance(turn, dict) and isinstance(turn.get(role), str) and isinstance(turn.get(content), str)
        for turn in value
    ):
        return None
    return [(_ROLES.get(turn[role], turn[role]), turn[content]) for turn in value]
