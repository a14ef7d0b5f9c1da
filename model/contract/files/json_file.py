"""Reads the JSON files of a checkpoint folder, and says in one line what is wrong with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model.contract.errors import CheckpointError

GENERATION_CONFIG = "generation_config.json"
# Settings, and what is long: indices of weights, tokenizers. A sparse file is as long as it says and costs its sender
# nothing, and what is read takes some twenty times the bytes of its text.
MAX_CONFIG_BYTES = 1 << 20
_MAX_BYTES = 64 << 20
# What is read may be quoted in messages or written again, and both recurse.
_MAX_DEPTH = 64


def read_json(path: Path, max_bytes: int = _MAX_BYTES) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        CheckpointError: the file is missing, unreadable, far too large, nested too deep or not a JSON object.
    """
    try:
        if path.stat().st_size > max_bytes:
            raise CheckpointError(f"{path}: is larger than {max_bytes:,} bytes; no such file of a checkpoint is")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise CheckpointError(f"{path}: no such file; is {path.parent} a checkpoint folder?") from e
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read ({e.strerror})") from e
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{path}: is not valid JSON ({e})") from e
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: must hold a JSON object")
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        level = [child for each in level for child in _children(each)]
        if not level:
            return value
    raise CheckpointError(f"{path}: is nested more than {_MAX_DEPTH} deep; no such file of a checkpoint is")


def read_generation_config(folder: Path) -> dict[str, Any]:
    """Reads the `generation_config.json` of a folder; an empty object where there is none.

    Raises:
        CheckpointError: as `read_json`.
    """
    path = folder / GENERATION_CONFIG
    return read_json(path, MAX_CONFIG_BYTES) if path.exists() else {}


def _children(value: Any) -> list[Any]:
    """The objects and lists that lie directly in a value."""
    parts = value.values() if isinstance(value, dict) else value
    return [part for part in parts if isinstance(part, dict | list)]
