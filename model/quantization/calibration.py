"""From text to the token ids a checkpoint is calibrated with: pieces of equal length out of one long row."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from model.errors import ConfigError
from model.quantization.calibration_text import Message, conversations
from model.tokenizer import Tokenizer

# Text is tokenised until there is this many times what is needed, so that pieces can be chosen.
_CHOICE = 2


def calibration_samples(
    tokenizer: Tokenizer, path: Path | None, *, num_samples: int, sample_length: int, seed: int
) -> torch.Tensor:
    """Chooses pieces of text.

    Args:
        tokenizer: of the checkpoint.
        path: plain text, or JSONL (`.jsonl`) whose lines have `text` or `messages`; None takes the built-in text.
        num_samples: the most pieces.
        sample_length: tokens of each.
        seed: of the choice.

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
    if path.suffix != ".jsonl":
        yield tokenizer.encode(text)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _from_line(tokenizer, line, f"{path}, line {number}")


def _from_line(tokenizer: Tokenizer, line: str, place: str) -> list[int]:
    try:
        entry: Any = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"{place}: not JSON ({e})") from e
    if isinstance(entry, dict) and isinstance(entry.get("text"), str):
        return [*tokenizer.encode(entry["text"]), tokenizer.endoftext_id]
    messages = entry.get("messages") if isinstance(entry, dict) else None
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    ):
        raise ConfigError(f"{place}: needs `text`, or `messages` with a `role` and a `content` each")
    return _chat(tokenizer, [(m["role"], m["content"]) for m in messages])
