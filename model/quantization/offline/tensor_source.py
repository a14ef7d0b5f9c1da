"""Tensors of a checkpoint by name, a few at a time: the rest stays on disk."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from model.contract.errors import CheckpointError
from model.contract.files.weight_files import find_weight_files
from model.execution.checkpoint import told_by_name
from model.execution.tensor_files import iterate_tensors


class TensorSource:
    """The weights of a folder.

    Args:
        is_quantized: tensors may be packed integers.

    Raises:
        CheckpointError: there are no weights, or a file is broken.
    """

    def __init__(self, folder: Path, *, is_quantized: bool = False) -> None:
        self._folder = folder
        self._file_of: dict[str, Path] = {}
        for path in find_weight_files(folder):
            names = _names(path)
            told = None if is_quantized else next(filter(None, map(told_by_name, names)), None)
            if told:
                raise CheckpointError(f"{path}: {told}")
            self._file_of |= dict.fromkeys(names, path)

    @property
    def names(self) -> Collection[str]:
        """The names of all tensors."""
        return self._file_of.keys()

    def __contains__(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._file_of

    def read(self, names: Collection[str], *, allow_integers: bool = False) -> dict[str, torch.Tensor]:
        """Reads tensors in their stored dtype; they may be views of the file, whose pages go when they do.

        Args:
            allow_integers: accept tensors of whole numbers.

        Raises:
            CheckpointError: one is missing, or holds infinities or NaN.
        """
        missing = [name for name in names if name not in self._file_of]
        if missing:
            raise CheckpointError(f"{self._folder}: missing tensors: {', '.join(missing[:3])}")
        tensors: dict[str, torch.Tensor] = {}
        for path in {self._file_of[name] for name in names}:
            wanted = {name for name in names if self._file_of[name] == path}
            tensors |= _read(path, wanted)
        for name, tensor in tensors.items():
            if allow_integers and not tensor.is_floating_point():
                continue
            if not tensor.is_floating_point() or not all_finite(tensor):
                raise CheckpointError(f"{self._folder}: tensor {name!r} holds infinities, NaN or no fractions")
        return tensors


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is infinite or NaN; one pass without a copy, for such values stay in any sum."""
    return bool(tensor.sum(dtype=torch.float32).isfinite())


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: truncated or corrupt safetensors file ({error})") from error


def _names(path: Path) -> list[str]:
    if path.suffix != ".safetensors":
        return [name for name, _ in iterate_tensors(path)]
    with _open(path) as file:
        return list(file.keys())


def _read(path: Path, names: set[str]) -> dict[str, torch.Tensor]:
    if path.suffix != ".safetensors":
        return {name: tensor.clone() for name, tensor in iterate_tensors(path) if name in names}
    with _open(path) as file:
        return {name: file.get_tensor(name) for name in names}
