"""Reads the front of GGUF files: metadata, and where each tensor lies. A file may come from anybody.

Pure: the format is `GGUF`, a version, two counts, then keys with typed values, then the tensors' names, shapes, types
and places, then their data. Every count and length is compared with what is left of the file before it is believed.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from model.contract.errors import CheckpointError
from model.contract.gguf.types import TENSOR_TYPES, TensorType

SUFFIX = ".gguf"
MAGIC = b"GGUF"

# number of a type -> struct's code for its values, which all have one size
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
# No model comes near; a count is read before what it counts.
_MAX_KEYS = 1 << 16
_MAX_TENSORS = 1 << 16
_MAX_DIMENSIONS = 4
_MAX_NAME_BYTES = 1 << 16
# Of all names, texts and wanted arrays together, and how many elements of arrays are looked at one by one. A sparse
# file is as long as it says and costs its sender nothing: that all of it fits the file is no bound.
_MAX_KEPT_BYTES = 64 << 20
_MAX_ELEMENTS = 1 << 22
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})")


class GGUFTensor(NamedTuple):
    """Where a tensor lies.

    Attributes:
        shape: rows first, as torch has it (the file has it the other way round).
        offset: bytes from the beginning of the file.
    """

    shape: tuple[int, ...]
    kind: TensorType
    path: Path
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """What the file of a model says, or its several files together.

    Attributes:
        path: the (first) file.
        metadata: values by key; arrays only where they were asked for.
        tensors: places by GGUF's names.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]


def is_gguf(path: Path) -> bool:
    """Whether a path names a GGUF file."""
    return path.suffix.lower() == SUFFIX


def is_later_shard(path: Path) -> bool:
    """Whether a path names one of a model's several files, and not the first."""
    match = _SHARD.fullmatch(path.stem)
    return match is not None and int(match[2]) > 1


def shards(path: Path) -> list[Path]:
    """Lists all files of the model that a file belongs to.

    Raises:
        CheckpointError: one of them is missing.
    """
    match = _SHARD.fullmatch(path.stem)
    if match is None or int(match[3]) < 2:
        return [path]
    stem, count = match[1], int(match[3])
    if int(match[2]) > count:
        return [path]
    paths = []
    for number in range(1, count + 1):  # a false count ends at the first file that is missing
        shard = path.with_name(f"{stem}-{number:05}-of-{count:05}{path.suffix}")
        if not shard.is_file():
            raise CheckpointError(f"{shard}: no such file; {path.name} is one of {count}: is the download complete?")
        paths.append(shard)
    return paths


def read_gguf(path: Path, arrays: frozenset[str] = frozenset()) -> GGUFFile:
    """Reads a model's metadata and the places of its tensors, from all its files.

    Args:
        path: the file, or any of several.
        arrays: keys of the arrays that are wanted; their texts come as bytes.

    Raises:
        CheckpointError: a file is missing, truncated, corrupt, or of a version or byte order that is not read.
    """
    paths = shards(path)
    first = _read_one(paths[0], arrays)
    tensors = dict(first.tensors)
    for other in paths[1:]:
        for name, tensor in _read_one(other, frozenset()).tensors.items():
            if name in tensors:
                raise CheckpointError(f"{other}: tensor {name!r} is in another file of the model too")
            tensors[name] = tensor
    count, total = first.metadata.get("split.count"), first.metadata.get("split.tensors.count")
    if isinstance(count, int) and count > 1 and count != len(paths):
        raise CheckpointError(
            f"{path}: is one of {count} files of a model; give it the name NAME-00001-of-{count:05}{SUFFIX} and put the"
            " others beside it"
        )
    if isinstance(total, int) and total != len(tensors):
        raise CheckpointError(f"{path}: its files hold {len(tensors)} tensors, but the first tells of {total}")
    return GGUFFile(first.path, first.metadata, tensors)


def _read_one(path: Path, arrays: frozenset[str]) -> GGUFFile:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data).read(arrays)
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read ({e.strerror or e})") from e
    except ValueError as e:  # mmap's, of an empty file
        raise CheckpointError(f"{path}: truncated, or not a GGUF file ({e})") from e


class _Reader:
    """Walks through the front of a file, up to the tensors' data."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._at = 0
        self._num_kept_bytes = 0
        self._num_elements = 0

    def read(self, arrays: frozenset[str]) -> GGUFFile:
        if self._data[:4] != MAGIC:
            raise CheckpointError(f"{self._path}: is not a GGUF file: it does not begin with {MAGIC.decode()}")
        self._at = 4
        version = self._number("I")
        if version not in _VERSIONS:
            if version and version % (1 << 16) == 0:
                raise CheckpointError(f"{self._path}: is in big-endian byte order; only little-endian files are read")
            raise CheckpointError(f"{self._path}: GGUF version {version} is not read; versions 2 and 3 are")
        num_tensors = self._count("tensors", _MAX_TENSORS)
        num_keys = self._count("keys", _MAX_KEYS)
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._text(_MAX_NAME_BYTES)
            if key in metadata:
                raise CheckpointError(f"{self._path}: has the key {key!r} twice: it is corrupt")
            value = self._value(self._number("I"), key, wanted=key in arrays)
            if value is not None:
                metadata[key] = value
        places = self._places(num_tensors)
        tensors = self._tensors(places, metadata.get("general.alignment", 32))
        return GGUFFile(self._path, metadata, tensors)

    def _tensors(self, places: dict[str, tuple[tuple[int, ...], int, int]], alignment: Any) -> dict[str, GGUFTensor]:
        if type(alignment) is not int or not 1 <= alignment <= 1 << 20:
            raise CheckpointError(f"{self._path}: general.alignment is {alignment!r}")
        begin = -(-self._at // alignment) * alignment
        tensors = {}
        for name, (shape, number, offset) in places.items():
            kind = TENSOR_TYPES.get(number)
            if kind is None:
                known = ", ".join(each.name for each in TENSOR_TYPES.values())
                raise CheckpointError(
                    f"{self._path}: tensor {name!r} is of type {number}, which is not read; {known} are"
                )
            if shape[-1] % kind.block_size:
                raise CheckpointError(
                    f"{self._path}: tensor {name!r} has rows of {shape[-1]}, which are no whole blocks of {kind.name}"
                )
            size = math.prod(shape) // kind.block_size * kind.block_bytes
            start = begin + offset
            if offset % alignment or start + size > len(self._data):
                raise CheckpointError(
                    f"{self._path}: tensor {name!r} would lie at {start:,} to {start + size:,}, but the file has"
                    f" {len(self._data):,} bytes: it is truncated or corrupt"
                )
            tensors[name] = GGUFTensor(shape, kind, self._path, start, size)
        return tensors

    def _places(self, num_tensors: int) -> dict[str, tuple[tuple[int, ...], int, int]]:
        """Reads each tensor's shape, number of its type, and offset."""
        places: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(num_tensors):
            name = self._text(_MAX_NAME_BYTES)
            num_dimensions = self._number("I")
            if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
                raise CheckpointError(f"{self._path}: tensor {name!r} has {num_dimensions} dimensions")
            shape = tuple(self._number("Q") for _ in range(num_dimensions))[::-1]
            if not all(shape):
                raise CheckpointError(f"{self._path}: tensor {name!r} has the shape {list(shape)}")
            if name in places:
                raise CheckpointError(f"{self._path}: tensor {name!r} is stored twice")
            places[name] = (shape, self._number("I"), self._number("Q"))
        return places

    def _value(self, kind: int, key: str, *, wanted: bool) -> Any:
        """Reads the value of a key; None for an array that is not wanted."""
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            raise CheckpointError(f"{self._path}: the value of {key!r} is of type {kind}, which GGUF does not have")
        element, count = self._number("I"), self._number("Q")
        if element in _NUMBERS:
            code = _NUMBERS[element]
            num_bytes = count * struct.calcsize("<" + code)
            if not wanted:
                self._skip(num_bytes)
                return None
            raw = self._keep(num_bytes, count)
            return list(struct.unpack(f"<{count}{code}", raw))
        if element != _STRING:
            raise CheckpointError(f"{self._path}: {key!r} is an array of type {element}, which is not read")
        if count * 8 > len(self._data) - self._at:  # each has its length in front
            raise self._truncated()
        self._note(0, count)
        return self._texts(count, wanted=wanted)

    def _texts(self, count: int, *, wanted: bool) -> list[bytes] | None:
        # 300,000 of them in a file: no call for each.
        data, at, end = self._data, self._at, len(self._data)
        unpack = struct.Struct("<Q").unpack_from
        texts = []
        for _ in range(count):
            if at + 8 > end:
                raise self._truncated()
            (length,) = unpack(data, at)
            at += 8 + length
            if at > end:
                raise self._truncated()
            if wanted:
                self._note(length)
                texts.append(data[at - length : at])
        self._at = at
        return texts if wanted else None

    def _count(self, what: str, limit: int) -> int:
        count: int = self._number("Q")
        if count > limit:
            raise CheckpointError(f"{self._path}: tells of {count:,} {what}, which no model has: it is corrupt")
        return count

    def _number(self, code: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def _text(self, limit: int | None = None) -> str:
        length = self._number("Q")
        if limit is not None and length > limit:
            raise CheckpointError(f"{self._path}: tells of a name of {length:,} bytes: it is corrupt")
        return self._keep(length).decode("utf-8", errors="replace")

    def _keep(self, num_bytes: int, num_elements: int = 0) -> bytes:
        if num_bytes > len(self._data) - self._at:
            raise self._truncated()
        self._note(num_bytes, num_elements)
        return self._take(num_bytes)

    def _note(self, num_bytes: int, num_elements: int = 0) -> None:
        """Counts what is about to be kept or looked at against the limits."""
        self._num_kept_bytes += num_bytes
        self._num_elements += num_elements
        if self._num_kept_bytes > _MAX_KEPT_BYTES or self._num_elements > _MAX_ELEMENTS:
            raise CheckpointError(f"{self._path}: has more metadata than any model: it is corrupt")

    def _take(self, num_bytes: int) -> bytes:
        self._skip(num_bytes)
        return self._data[self._at - num_bytes : self._at]

    def _skip(self, num_bytes: int) -> None:
        if num_bytes > len(self._data) - self._at:
            raise self._truncated()
        self._at += num_bytes

    def _truncated(self) -> CheckpointError:
        return CheckpointError(
            f"{self._path}: truncated or corrupt: something at byte {self._at:,} would end beyond the file's"
            f" {len(self._data):,}"
        )
