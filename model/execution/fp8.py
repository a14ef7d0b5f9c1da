"""Weights stored in 8-bit floating point: each times the scale that lies beside it.

Three forms are in use: no scale (the numbers are meant as they are), `weight_scale` (one for the matrix, or one an
output), and `weight_scale_inv` (one for each block of 128 x 128; in spite of its name it is multiplied too).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from model.contract.errors import CheckpointError

_TYPES = frozenset({torch.float8_e4m3fn, torch.float8_e5m2})
_BLOCK = 128
_SCALES = ("_scale", "_scale_inv")
# Of activations: a device that multiplies in 8 bits wants them; ours does not.
_SUFFIXES = (".weight_scale", ".weight_scale_inv", ".input_scale")


def scaled(
    path: Path, tensors: Iterable[tuple[str, torch.Tensor]], is_wanted: Callable[[str], bool]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields a safetensors file's tensors with their scales applied; the scales themselves are left out.

    Args:
        tensors: the tensors of the file at `path`, with their names.
        is_wanted: whether a tensor's numbers matter.

    Raises:
        CheckpointError: a scale does not fit its weight.
    """
    for name, tensor in tensors:
        if name.endswith(_SUFFIXES):
            continue
        if tensor.dtype in _TYPES and is_wanted(name):
            tensor = _times_scale(path, name, tensor)
        yield name, tensor
        del tensor


def _times_scale(path: Path, name: str, tensor: torch.Tensor) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        stored = set(file.keys())
        scales = [file.get_tensor(name + suffix).float() for suffix in _SCALES if name + suffix in stored]
    if not scales:
        return tensor
    scale, numbers = scales[0], tensor.float()
    if scale.numel() == 1:
        return numbers.mul_(scale.reshape(()))
    if numbers.dim() == 2 and scale.shape in ((len(numbers),), (len(numbers), 1)):
        return numbers.mul_(scale.view(-1, 1))
    if numbers.dim() == 2 and scale.dim() == 2:
        num_rows, num_columns = numbers.shape
        if scale.shape == (-(-num_rows // _BLOCK), -(-num_columns // _BLOCK)):
            spread = scale.repeat_interleave(_BLOCK, 0)[:num_rows].repeat_interleave(_BLOCK, 1)[:, :num_columns]
            return numbers.mul_(spread)
    raise CheckpointError(
        f"{path}: tensor {name!r} is FP8 of shape {list(tensor.shape)}, and its scale of shape {list(scale.shape)}; one"
        " scale, one an output, or one for each block of 128 x 128 is read"
    )
