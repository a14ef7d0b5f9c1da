"""Reads tensors from a checkpoint's files, one at a time: safetensors, or `.bin` files by torch's weights-only reader.

Nothing in a file is executed, and what is not weights is refused with its path.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from model.contract.errors import CheckpointError
from model.contract.files.weight_files import EMBEDDING, find_weight_files, rows_of_embedding
from model.contract.gguf.file import is_gguf
from model.execution.fp8 import scaled


def stored_rows(folder: Path) -> int | None:
    """Returns how many rows the embedding in a folder's weights has, `.bin` files included; None where it is in none.

    Raises:
        CheckpointError: the weights cannot be read.
    """
    if is_gguf(folder):
        return None  # its config comes from the tensors
    for path in find_weight_files(folder):
        if path.suffix != ".safetensors":
            state, _ = _load_bin(path)  # mapped, not read
            if EMBEDDING in state:
                return state[EMBEDDING].shape[0]
    return rows_of_embedding(folder)


def iterate_tensors(path: Path, is_wanted: Callable[[str], bool] = bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the tensors of one file on the CPU, in their stored dtype; each may be a view of the file.

    Args:
        is_wanted: by a tensor's name, whether anybody will look at it; by default all are wanted.

    Raises:
        CheckpointError: the file is truncated, corrupt or holds something other than tensors.
    """
    if not os.access(path, os.R_OK):  # the readers below would call it missing or corrupt
        raise CheckpointError(f"{path}: cannot be read: permission denied; is it another user's?")
    if path.suffix == ".safetensors":
        yield from scaled(path, _iterate_safetensors(path), is_wanted)
    else:
        yield from _iterate_bin(path)


def _iterate_safetensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            names = sorted(file.keys(), key=_load_order)
        for name in names:
            # Opened anew for each tensor: the mapping, and with it the file's pages, goes when the tensor does.
            with safe_open(path, framework="pt") as file:
                tensor = file.get_tensor(name)
            yield name, tensor
            del tensor
    except (SafetensorError, OSError, RuntimeError, ValueError) as e:
        raise CheckpointError(f"{path}: truncated or corrupt safetensors file ({e})") from e


def _iterate_bin(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    state, is_mapped = _load_bin(path)
    names = sorted(state, key=_load_order)
    window_bytes = max((tensor.nbytes for tensor in state.values()), default=0)
    mapped_bytes = 0
    for name in names:
        if is_mapped and mapped_bytes + state[name].nbytes > window_bytes:
            # The file is mapped as one piece: the pages read so far would stay until its last tensor is read.
            state.clear()
            state, _ = _load_bin(path)
            mapped_bytes = 0
        tensor = state.pop(name)
        mapped_bytes += tensor.nbytes
        yield name, tensor
        del tensor


def _load_bin(path: Path) -> tuple[dict[str, torch.Tensor], bool]:
    """Returns the tensors of a `.bin` file, and whether they are views of the mapped file."""
    is_mapped = True
    try:
        _refuse_compressed(path)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as e:
            if "mmap" not in str(e):
                raise
            is_mapped = False
            state = torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6
    except CheckpointError:
        raise
    except Exception as e:  # whatever a garbled pickle, or list of records, makes of its reader
        raise CheckpointError(f"{path}: truncated, corrupt or not a file of weights only ({_reason(e)})") from e
    if isinstance(state, dict) and isinstance(state.get("module"), dict):
        state = state["module"]  # DeepSpeed's, beside the state of training
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
        for name, tensor in state.items()
    ):
        raise CheckpointError(f"{path}: holds something other than named tensors")
    return state, is_mapped


def _refuse_compressed(path: Path) -> None:
    """Refuses what torch never writes: it would be read into memory whole, however large it says it is."""
    if not zipfile.is_zipfile(path):  # the format before torch 1.6, or no weights at all
        return
    with zipfile.ZipFile(path) as archive:
        if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
            raise CheckpointError(
                f"{path}: was compressed after torch.save wrote it; load it and save it again, better as safetensors"
            )


def _reason(error: Exception) -> str:
    """The telling line of an error of torch.load, without its advice to trust the file and execute it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 2 and lines[-1].startswith("Check the documentation"):
        return lines[-2]
    return lines[0].split(". ")[0] if lines else type(error).__name__


def _load_order(name: str) -> tuple[str, ...]:
    """Tensors of one layer next to each other, so that it is packed before the next one is read."""
    return tuple(part.zfill(5) if part.isdigit() else part for part in name.split("."))
