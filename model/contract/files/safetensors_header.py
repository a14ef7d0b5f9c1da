"""What a safetensors file holds, read off its header: names, dtypes and shapes, never the tensors.

Pure: the format is a length (8 bytes, little end first), that much JSON, and the data.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

from model.contract.errors import CheckpointError

_MAX_HEADER_BYTES = 16 << 20  # a tensor takes some hundred


class TensorInfo(NamedTuple):
    """One tensor: its dtype as the format names it ("BF16", "I32" ...), its shape, and its bytes in the file."""

    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Lists the tensors of a file.

    Raises:
        CheckpointError: it cannot be read, or is truncated or corrupt.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(f"{path}: truncated, or not a safetensors file")
            header = json.loads(file.read(length))
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read ({e.strerror})") from e
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{path}: not a safetensors file (its header is not JSON)") from e
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its header is malformed (not an object)")
    header.pop("__metadata__", None)
    infos, end = {}, 0
    for name, entry in header.items():
        offsets = _sizes(entry, "data_offsets")
        shape = _sizes(entry, "shape")
        if shape is None or offsets is None or len(offsets) != 2 or not isinstance(entry.get("dtype"), str):
            raise CheckpointError(f"{path}: its header is malformed (tensor {name!r})")
        infos[name] = TensorInfo(entry["dtype"], tuple(shape), max(0, offsets[1] - offsets[0]))
        end = max(end, *offsets)
    if end + 8 + length > size:
        raise CheckpointError(f"{path}: truncated: {size:,} bytes, but its header tells of {end + 8 + length:,}")
    return infos


def _sizes(entry: Any, key: str) -> list[int] | None:
    """Reads a list of whole numbers from 0 to 64 bits; None where it is anything else."""
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, list):
        return None
    return value if all(type(size) is int and 0 <= size < 1 << 63 for size in value) else None
