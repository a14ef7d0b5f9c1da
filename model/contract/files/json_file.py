"""Reads the JSON files of a checkpoint folder, and says in one line what is wrong with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model.contract.errors import CheckpointError

# The largest are indices of weights, of some MB. A sparse file is as long as it says and costs its sender nothing.
_MAX_BYTES = 64 << 20


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        CheckpointError: the file is missing, unreadable, far too large or not a JSON object.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CheckpointError(f"{path}: is larger than {_MAX_BYTES:,} bytes; no such file of a checkpoint is")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise CheckpointError(f"{path}: no such file; is {path.parent} a checkpoint folder?") from e
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read ({e.strerror})") from e
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{path}: is not valid JSON ({e})") from e
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: must hold a JSON object")
    return value
