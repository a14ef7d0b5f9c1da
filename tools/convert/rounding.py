"""Shared by the tools that write whole checkpoints: rounding to a dtype, disk space, progress."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from tqdm import tqdm

from model.contract.config import ModelConfig
from model.contract.errors import CheckpointError
from model.contract.files.linears import linear_shapes

Tensors = dict[str, torch.Tensor]

DISK_MARGIN = 1.02


def cast(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    """Copies tensors to the dtype to be written: views of one tensor or of a file cannot be saved.

    Raises:
        CheckpointError: a value is beyond what the dtype holds.
    """
    rounded = {name: tensor.to(dtype, copy=True).contiguous() for name, tensor in tensors.items()}
    for name, tensor in rounded.items():
        if not bool(tensor.sum(dtype=torch.float32).isfinite()):
            raise CheckpointError(f"tensor {name!r} has values beyond {dtype_name(dtype)}; try another --dtype")
    return rounded


def choose_dtype(wanted: str, stored: torch.dtype) -> torch.dtype:
    """Returns the dtype of a `--dtype`; "auto" is what is stored."""
    return stored if wanted == "auto" else getattr(torch, wanted)


def dtype_name(dtype: torch.dtype) -> str:
    """Returns a dtype's name as config.json writes it."""
    return str(dtype).removeprefix("torch.")


def disk_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Reckons the bytes that a checkpoint takes on disk, all linears unquantised."""
    per_block = sum(map(math.prod, linear_shapes(config).values()))
    numbers = config.num_layers * per_block + 2 * config.vocab_size * config.hidden_size
    return int(numbers * dtype.itemsize * DISK_MARGIN)


def watched(groups: Iterator[Tensors], num_layers: int, what: str) -> Iterator[Tensors]:
    """Shows progress: blocks, and the three tensors outside of them."""
    yield from tqdm(groups, total=num_layers + 3, desc=what, unit="part", disable=None)
