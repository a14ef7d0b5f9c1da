"""Writes a checkpoint folder whole or not at all: shards go into a folder beside it, which is renamed at the end."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from model.contract.errors import ConfigError

_MAX_SHARD_BYTES = 512 << 20  # waits in memory until it is written, twice: safetensors copies it
_METADATA = {"format": "pt"}
LICENCES = ("LICENSE*", "NOTICE*")
OTHER_FILES = ("*.tiktoken", "*.json", "*.py", *LICENCES)  # vocabulary, settings, published code
_NOT_COPIED = ("config.json", "quantize_config.json", "quant_config.json")


def check_target(target: Path, needed_bytes: int) -> None:
    """Finds out before the work that its result could not be written.

    Args:
        target: the folder to make; an empty one may stand there.
        needed_bytes: size of everything that will be written.

    Raises:
        ConfigError: something is there, or the disk has too little space.
    """
    try:
        is_free = not (target.exists() or target.is_symlink()) or (target.is_dir() and not any(target.iterdir()))
    except OSError as e:
        raise ConfigError(f"{target}: {e.strerror}") from e
    if not is_free:
        raise ConfigError(f"{target}: exists already; name a new folder, or an empty one")
    parent = target.absolute().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise ConfigError(f"{target}: {needed_bytes / 1e9:.2f} GB are needed there, {free / 1e9:.2f} GB are free")


class CheckpointWriter:
    """A context that makes `target`; leaving it by an exception leaves nothing.

    Args:
        target: must not exist, or be an empty folder.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._folder = target.with_name(f".{target.name}.partial-{os.getpid()}")
        self._waiting: dict[str, torch.Tensor] = {}
        self._shards: list[list[str]] = []
        self._total_bytes = 0

    def __enter__(self) -> CheckpointWriter:
        """Makes the folder that is written to."""
        try:
            self._folder.mkdir(parents=True)
        except OSError as e:
            raise ConfigError(f"{self._target}: cannot be made there ({e.strerror})") from e
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Gives the folder its name, or removes it."""
        try:
            if kind is None:
                self._finish()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, tensors: dict[str, torch.Tensor]) -> None:
        """Takes tensors; they wait until a shard is full."""
        self._waiting |= tensors
        if sum(tensor.nbytes for tensor in self._waiting.values()) >= _MAX_SHARD_BYTES:
            self._flush()

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Writes a file beside the weights."""
        self.write_text(name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Writes a file beside the weights."""
        (self._folder / name).write_text(text, encoding="utf-8")

    def copy(self, source: Path, patterns: Iterable[str] = OTHER_FILES) -> None:
        """Copies a checkpoint's files except weights and config."""
        for pattern in patterns:
            for path in source.glob(pattern):
                if path.is_file() and path.name not in _NOT_COPIED and not path.name.endswith(".index.json"):
                    shutil.copyfile(path, self._folder / path.name)

    def _flush(self) -> None:
        if not self._waiting:
            return
        path = self._folder / f"shard-{len(self._shards)}"
        path.touch()
        mode = path.stat().st_mode
        try:
            save_file(self._waiting, str(path), metadata=_METADATA)
        except SafetensorError as error:  # not an OSError, even where the disk is full
            raise ConfigError(f"{self._target}: cannot be written ({error})") from error
        path.chmod(mode)  # safetensors makes files that only their owner can read
        self._total_bytes += sum(tensor.nbytes for tensor in self._waiting.values())
        self._shards.append(list(self._waiting))
        self._waiting = {}

    def _finish(self) -> None:
        self._flush()
        count = len(self._shards)
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            name = "model.safetensors" if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors"
            (self._folder / f"shard-{number}").rename(self._folder / name)
            weight_map |= dict.fromkeys(names, name)
        if count > 1:
            index = {"metadata": {"total_size": self._total_bytes}, "weight_map": weight_map}
            self.write_json("model.safetensors.index.json", index)
        try:
            self._folder.rename(self._target)
        except OSError as e:
            raise ConfigError(f"{self._target}: appeared meanwhile; nothing was replaced") from e
