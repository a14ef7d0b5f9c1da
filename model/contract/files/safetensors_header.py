"""What a safetensors file holds, read off its header: names, dtypes and shapes, never the tensors.

Pure: the format is a length (8 bytes, little end first), that much JSON, and the data.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import NamedTuple

from model.contract.errors import CheckpointError

_MAX_HEADER_BYTES = 100 << 20


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
    try:
        infos = {
            name: TensorInfo(entry["dtype"], tuple(entry["shape"]), entry["data_offsets"][1] - entry["data_offsets"][0])
            for name, entry in header.items()
            if name != "__metadata__"
        }
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    except (AttributeError, KeyError, IndexError, TypeError) as e:
        raise CheckpointError(f"{path}: its header is malformed ({e!r})") from e
    if end + 8 + length > size:
        raise CheckpointError(f"{path}: truncated: {size:,} bytes, but its header tells of {end + 8 + length:,}")
    return infos
