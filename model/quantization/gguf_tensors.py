"""Tensors of GGUF files: small integers with a scale and perhaps an offset a group, exactly as the file means them.

Layouts are those of ggml's blocks, and the numbers equal the package gguf's `dequantize` to the bit. Types without
such a form are expanded by that package.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from model.backends.weights import GroupedWeight
from model.contract.errors import CheckpointError
from model.contract.gguf.file import GGUFTensor, read_gguf
from model.contract.gguf.tensor_names import checkpoint_name
from model.contract.gguf.types import RARE_TYPES, TYPE_NUMBERS

# Decoded at a time; a block takes some ten times its bytes while it is.
_NUMBERS_PER_PASS = 8 << 20

_PLAIN = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

# The levels of IQ4_NL and IQ4_XS.
_IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


class _Decoded(NamedTuple):
    """Blocks [R, B, ...] as values [R, B, block] uint8 and [R, B, groups] float32 scales and offsets."""

    values: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor | None = None


def iterate_gguf(path: Path, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, torch.Tensor | GroupedWeight]]:
    """Yields a model's tensors under the names of a checkpoint, those of one layer next to each other.

    Args:
        is_wanted: tells by its name whether a tensor is decoded; others come as bytes.

    Raises:
        CheckpointError: a file cannot be read, or a tensor is of a type that needs the package gguf.
    """
    tensors = {checkpoint_name(name): tensor for name, tensor in read_gguf(path).tensors.items()}
    for name in sorted(tensors, key=_load_order):
        yield name, read_tensor(name, tensors[name]) if is_wanted(name) else _map(tensors[name])


def _load_order(name: str) -> tuple[str, ...]:
    return tuple(part.zfill(5) if part.isdigit() else part for part in name.split("."))


def read_tensor(name: str, tensor: GGUFTensor) -> torch.Tensor | GroupedWeight:
    """Reads one tensor: as numbers, or as a grouped weight where its type has that form; messages name it.

    Raises:
        CheckpointError: it cannot be read, or its type needs the package gguf.
    """
    raw = _map(tensor)
    kind = tensor.kind.name
    if kind in _PLAIN:
        return raw.view(_PLAIN[kind]).view(tensor.shape)
    if kind in RARE_TYPES:
        return _expand_by_gguf(name, tensor, raw)
    if len(tensor.shape) != 2:
        raise CheckpointError(f"{tensor.path}: tensor {name!r} is {kind} of shape {list(tensor.shape)}, not a matrix")
    return _decode(raw, tensor)


def _map(tensor: GGUFTensor) -> torch.Tensor:
    """Returns the tensor's bytes: a view of the file, whose pages go when the view does."""
    start = tensor.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    try:
        with tensor.path.open("rb") as file:
            length = tensor.offset - start + tensor.num_bytes
            data = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=start)
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{tensor.path}: cannot be read ({e})") from e
    return torch.frombuffer(data, dtype=torch.uint8, count=tensor.num_bytes, offset=tensor.offset - start)


def _expand_by_gguf(name: str, tensor: GGUFTensor, raw: torch.Tensor) -> torch.Tensor:
    try:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError as e:
        raise CheckpointError(
            f"{tensor.path}: tensor {name!r} is {tensor.kind.name}, which is read by the package gguf: pip install"
            " 'qwen-server[gguf]'"
        ) from e
    rows = raw.view(*tensor.shape[:-1], -1).numpy()
    numbers = dequantize(rows, GGMLQuantizationType(TYPE_NUMBERS[tensor.kind.name]))
    return torch.from_numpy(numbers).view(tensor.shape)


def _decode(raw: torch.Tensor, tensor: GGUFTensor) -> GroupedWeight:
    kind = tensor.kind
    num_rows, num_columns = tensor.shape
    decode = _DECODERS[kind.name]
    blocks = raw.view(num_rows, num_columns // kind.block_size, kind.block_bytes)
    num_groups = num_columns // kind.group_size
    values = torch.empty(num_rows, num_columns, dtype=torch.uint8)
    scales = torch.empty(num_rows, num_groups)
    offsets = torch.empty(num_rows, num_groups) if kind.has_offsets else None
    rows = max(1, _NUMBERS_PER_PASS // num_columns)
    for low in range(0, num_rows, rows):
        part = slice(low, low + rows)
        decoded = decode(blocks[part])
        values[part] = decoded.values.flatten(1)
        scales[part] = decoded.scales.flatten(1)
        if offsets is not None:
            assert decoded.offsets is not None
            offsets[part] = decoded.offsets.flatten(1)
    zero = 128 if kind.kept_bits == 8 else 0 if kind.has_offsets else 8
    return GroupedWeight(values, scales, offsets, kind.kept_bits, zero)


def _halves(data: torch.Tensor) -> torch.Tensor:
    """Reads [R, B, 2 n] bytes of float16 numbers as [R, B, n] float32."""
    return data.contiguous().view(torch.float16).float()


def _nibbles(data: torch.Tensor) -> torch.Tensor:
    """Splits [..., n] bytes into [..., 2 n] values: the low halves of all, then the high ones."""
    return torch.cat((data & 15, data >> 4), -1)


def _planes(data: torch.Tensor, run: int, bits: int) -> torch.Tensor:
    """Splits [R, B, n] bytes into [R, B, n * 8 / bits] values: of each run of bytes the lowest bits of all, then on."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)[:, None]
    runs = data.reshape(*data.shape[:2], -1, 1, run)
    return (runs >> shifts & ((1 << bits) - 1)).flatten(2)


def _q4_0(blocks: torch.Tensor) -> _Decoded:
    return _Decoded(_nibbles(blocks[..., 2:]), _halves(blocks[..., :2]))


def _q4_1(blocks: torch.Tensor) -> _Decoded:
    return _Decoded(_nibbles(blocks[..., 4:]), _halves(blocks[..., :2]), _halves(blocks[..., 2:4]))


def _fifth_bits(data: torch.Tensor) -> torch.Tensor:
    """Reads [R, B, 4] bytes as the fifth bits of 32 values, each at its place."""
    return ((data[..., None] >> torch.arange(8, dtype=torch.uint8) & 1) << 4).flatten(2)


def _q5_0(blocks: torch.Tensor) -> _Decoded:
    values = _nibbles(blocks[..., 6:]) | _fifth_bits(blocks[..., 2:6])
    return _Decoded(values + (128 - 16), _halves(blocks[..., :2]))


def _q5_1(blocks: torch.Tensor) -> _Decoded:
    values = _nibbles(blocks[..., 8:]) | _fifth_bits(blocks[..., 4:8])
    return _Decoded(values + 128, _halves(blocks[..., :2]), _halves(blocks[..., 2:4]))


def _q8_0(blocks: torch.Tensor) -> _Decoded:
    return _Decoded(blocks[..., 2:] ^ 128, _halves(blocks[..., :2]))


def _q2_k(blocks: torch.Tensor) -> _Decoded:
    steps, d, minimum = blocks[..., :16], _halves(blocks[..., 80:82]), _halves(blocks[..., 82:84])
    return _Decoded(_planes(blocks[..., 16:80], 32, 2), d * (steps & 15), minimum * -(steps >> 4).float())


def _q3_k(blocks: torch.Tensor) -> _Decoded:
    high, low, packed, d = blocks[..., :32], blocks[..., 32:96], blocks[..., 96:108], _halves(blocks[..., 108:110])
    # Six bits: the lower four of 16 in 8 bytes, the upper two of 16 in 4.
    steps = _nibbles(packed[..., :8]) | _planes(packed[..., 8:], 4, 2) << 4
    # From -4 to 3, kept about the middle of four bits.
    values = (_planes(low, 32, 2) | _planes(high, 32, 1) << 2) + 4
    return _Decoded(values, d * (steps.float() - 32))


def _k_steps(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads the scales and offsets of Q4_K and Q5_K: [R, B, 8] each."""
    d, minimum = _halves(blocks[..., :2]), _halves(blocks[..., 2:4])
    first, second, third = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    steps = torch.cat((first & 63, (third & 15) | (first >> 2 & 48)), -1)
    below = torch.cat((second & 63, (third >> 4) | (second >> 2 & 48)), -1)
    return d * steps, minimum * -below.float()


def _q4_k(blocks: torch.Tensor) -> _Decoded:
    return _Decoded(_planes(blocks[..., 16:], 32, 4), *_k_steps(blocks))


def _q5_k(blocks: torch.Tensor) -> _Decoded:
    values = _planes(blocks[..., 48:], 32, 4) | _planes(blocks[..., 16:48], 32, 1) << 4
    return _Decoded(values + 128, *_k_steps(blocks))


def _q6_k(blocks: torch.Tensor) -> _Decoded:
    values = _planes(blocks[..., :128], 64, 4) | _planes(blocks[..., 128:192], 32, 2) << 4
    steps = blocks[..., 192:208].contiguous().view(torch.int8).float()
    return _Decoded(values + (128 - 32), _halves(blocks[..., 208:210]) * steps)


def _iq4_levels(indices: torch.Tensor) -> torch.Tensor:
    return torch.tensor([level + 128 for level in _IQ4_LEVELS], dtype=torch.uint8)[indices.long()]


def _iq4_nl(blocks: torch.Tensor) -> _Decoded:
    return _Decoded(_iq4_levels(_nibbles(blocks[..., 2:])), _halves(blocks[..., :2]))


def _iq4_xs(blocks: torch.Tensor) -> _Decoded:
    low = torch.stack((blocks[..., 4:8] & 15, blocks[..., 4:8] >> 4), -1).flatten(2)
    high = (blocks[..., 2:4, None] >> torch.arange(0, 8, 2, dtype=torch.uint8) & 3).flatten(2)
    scales = _halves(blocks[..., :2]) * ((low | high << 4).float() - 32)
    return _Decoded(_iq4_levels(_planes(blocks[..., 8:], 16, 4)), scales)


_DECODERS: dict[str, Callable[[torch.Tensor], _Decoded]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}
