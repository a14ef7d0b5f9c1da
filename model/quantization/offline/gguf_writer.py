"""Writes GGUF files: the metadata, then tensor after tensor, each quantised as it is written."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from model.contract.errors import ConfigError
from model.contract.gguf.file import MAGIC
from model.contract.gguf.types import TENSOR_TYPES, TYPE_NUMBERS

_ALIGNMENT = 32
_VERSION = 3
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_BLOCK = 32
_NUMBERS_PER_PASS = 8 << 20


class Planned(NamedTuple):
    """A tensor to be written.

    Attributes:
        name: GGUF's name of it.
        shape: rows first.
        kind: the name of its type, see `TENSOR_TYPES`.
        read: returns its numbers.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    read: Callable[[], torch.Tensor]

    @property
    def num_bytes(self) -> int:
        """Bytes of its data."""
        kind = TENSOR_TYPES[TYPE_NUMBERS[self.kind]]
        return math.prod(self.shape) // kind.block_size * kind.block_bytes


def write_gguf(
    target: Path, metadata: dict[str, Any], tensors: Sequence[Planned], on_tensor: Callable[[str], None]
) -> None:
    """Writes a file that is whole or not there.

    Args:
        target: must not exist.
        metadata: texts, truth values, integers (unsigned of 32 bits), floats (of 32 bits), and lists of texts (bytes)
            or of integers.
        tensors: written in this order.
        on_tensor: called with the name of each tensor that is written.

    Raises:
        ConfigError: it cannot be written there.
    """
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        try:
            with partial.open("xb") as file:
                _write(file, metadata, tensors, on_tensor)
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                raise ConfigError(f"{target}: appeared meanwhile; nothing was replaced")
            partial.rename(target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as e:
        raise ConfigError(f"{target}: cannot be written ({e.strerror or e})") from e


def _write(
    file: BinaryIO, metadata: dict[str, Any], tensors: Sequence[Planned], on_tensor: Callable[[str], None]
) -> None:
    file.write(MAGIC + struct.pack("<IQQ", _VERSION, len(tensors), len(metadata)))
    for key, value in metadata.items():
        file.write(_text(key) + _value(value))
    offset = 0
    for tensor in tensors:
        file.write(_text(tensor.name) + struct.pack("<I", len(tensor.shape)))
        file.write(struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape)))
        file.write(struct.pack("<IQ", TYPE_NUMBERS[tensor.kind], offset))
        offset += -(-tensor.num_bytes // _ALIGNMENT) * _ALIGNMENT
    for tensor in tensors:
        file.write(b"\0" * (-file.tell() % _ALIGNMENT))
        numbers = tensor.read()
        rows = numbers.reshape(-1, numbers.shape[-1])
        step = max(1, _NUMBERS_PER_PASS // rows.shape[1])
        for low in range(0, len(rows), step):
            part = _ENCODERS[tensor.kind](rows[low : low + step])
            file.write(part.contiguous().view(torch.uint8).numpy().data)
        on_tensor(tensor.name)


def _text(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if all(isinstance(each, int) for each in value):
        return struct.pack(f"<IIQ{len(value)}i", _ARRAY, _INT32, len(value), *value)
    return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_text, value))


def _blocks(rows: torch.Tensor) -> torch.Tensor:
    return rows.float().reshape(-1, _BLOCK)


def _q8_0(rows: torch.Tensor) -> torch.Tensor:
    """Makes blocks as llama.cpp does: a float16 scale of the largest magnitude over 127, and int8 values."""
    blocks = _blocks(rows)
    scales = blocks.abs().amax(1, keepdim=True) / 127
    inverse = torch.where(scales == 0, 0.0, 1 / scales)
    scaled = blocks * inverse
    # Halves go away from zero, as C's roundf has it.
    values = (scaled.sign() * (scaled.abs() + 0.5).floor()).to(torch.int8)
    return torch.cat((scales.half().view(torch.uint8), values.view(torch.uint8)), 1)


def _q4_0(rows: torch.Tensor) -> torch.Tensor:
    """Makes blocks as llama.cpp does: the number of largest magnitude becomes the lowest of the 16 levels."""
    blocks = _blocks(rows)
    largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    scales = largest / -8
    inverse = torch.where(scales == 0, 0.0, 1 / scales)
    values = (blocks * inverse + 8.5).clamp(0, 15).to(torch.uint8)
    packed = values[:, : _BLOCK // 2] | values[:, _BLOCK // 2 :] << 4
    return torch.cat((scales.half().view(torch.uint8), packed), 1)


_ENCODERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "F32": lambda rows: rows.float(),
    "F16": lambda rows: rows.half(),
    "BF16": lambda rows: rows.bfloat16(),
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
}
