"""Defaults of requests, by the checkpoint's `generation_config.json`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.contract.errors import CheckpointError
from model.contract.files.json_file import GENERATION_CONFIG, read_generation_config
from model.contract.gguf.config import gguf_generation
from model.contract.gguf.file import is_gguf

logger = logging.getLogger(__name__)

CHATML = "chatml"
RAW = "raw"


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """Defaults of a checkpoint; these values are the published ones where the file is silent.

    Attributes:
        temperature: 0 where the file says `do_sample: false`.
        top_p: 0 leaves the likeliest token alone.
        top_k: 0 is off.
        repetition_penalty: 1 is off.
        chat_format: "chatml", or "raw" for a base model.
        eos_token_ids: end a reply, besides the control tokens of the vocabulary.
        stop_sequences: the `stop_words_ids` of two tokens or more, at which the published generate() ends a reply too.
        max_new_tokens: limit of a chat's reply; None is what is left of the context.
        max_window_size: tokens of system text and turns that the published chat() keeps.
    """

    temperature: float = 1.0
    top_p: float = 0.8
    top_k: int = 0
    repetition_penalty: float = 1.0
    chat_format: str = CHATML
    eos_token_ids: tuple[int, ...] = ()
    stop_sequences: tuple[tuple[int, ...], ...] = ()
    max_new_tokens: int | None = None
    max_window_size: int = 6144

    @classmethod
    def from_folder(cls, folder: Path) -> GenerationDefaults:
        """Reads the file of a checkpoint folder, or what a GGUF file says; nothing means the published defaults.

        Raises:
            CheckpointError: the file is there but cannot be used.
        """
        if is_gguf(folder):
            data, remarks = gguf_generation(folder)
            for remark in remarks:
                logger.info("%s: %s", folder, remark)
            return cls._from_data(folder, data)
        return cls._from_data(folder / GENERATION_CONFIG, read_generation_config(folder))

    @classmethod
    def _from_data(cls, path: Path, data: dict[str, Any]) -> GenerationDefaults:
        reader = _Reader(path, data)
        greedy = data.get("do_sample") is False
        return cls(
            temperature=0.0 if greedy else reader.number("temperature", 1.0, low=0.0, high=1e6),
            top_p=reader.number("top_p", cls().top_p, low=0.0, high=1.0),
            top_k=int(reader.number("top_k", 0, low=-1, high=1e9)) if data.get("top_k") != -1 else 0,
            repetition_penalty=reader.number("repetition_penalty", 1.0, low=1e-6, high=1e6),
            chat_format=reader.chat_format(),
            eos_token_ids=reader.eos_token_ids(),
            stop_sequences=tuple(words for words in reader.stop_words() if len(words) > 1),
            max_new_tokens=reader.max_new_tokens(),
            max_window_size=int(reader.number("max_window_size", cls().max_window_size, low=1, high=1e9)),
        )


@dataclass(frozen=True, slots=True)
class _Reader:
    path: Path
    data: dict[str, Any]

    def number(self, key: str, default: float, *, low: float, high: float) -> float:
        value = self.data.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise CheckpointError(f"{self.path}: {key} must be a number from {low:g} to {high:g}, not {value!r}")
        return value

    def max_new_tokens(self) -> int | None:
        value = self.number("max_new_tokens", 0, low=1, high=1e9)
        return int(value) if value else None

    def chat_format(self) -> str:
        value = self.data.get("chat_format") or CHATML
        if value not in (CHATML, RAW):
            raise CheckpointError(f"{self.path}: chat_format {value!r} is unknown; {CHATML} and {RAW} are served")
        return str(value)

    def eos_token_ids(self) -> tuple[int, ...]:
        value = self.data.get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(map(_is_id, ids)):
            raise CheckpointError(f"{self.path}: eos_token_id must be a token id or a list of them, not {value!r}")
        return tuple(dict.fromkeys([*ids, *(words[0] for words in self.stop_words() if len(words) == 1)]))

    def stop_words(self) -> list[tuple[int, ...]]:
        value = self.data.get("stop_words_ids")
        lists = [] if value is None else value
        if not isinstance(lists, list) or not all(isinstance(ids, list) and all(map(_is_id, ids)) for ids in lists):
            raise CheckpointError(f"{self.path}: stop_words_ids must be a list of lists of token ids, not {value!r}")
        return [tuple(ids) for ids in lists if ids]


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
