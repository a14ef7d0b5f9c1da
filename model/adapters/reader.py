"""Reads an adapter's tensors: low-rank factors and whole weights, checked against the model they are for.

Strict, as the reader of checkpoints is; pickles are read only through torch's weights-only reader. The tensors are
views of the file: callers convert and keep what they need.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import torch

from model.adapters.low_rank import LowRankUpdate
from model.contract.config import ModelConfig
from model.contract.errors import AdapterError, CheckpointError
from model.contract.files.adapter_config import AdapterConfig
from model.contract.files.adapter_tensors import AdapterTensor, check_shape, identify
from model.contract.files.linears import linear_shapes
from model.contract.files.safetensors_header import read_header
from model.execution.tensor_files import iterate_tensors

WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Bytes of a file besides its numbers: names, offsets, pickles of them.
_MAX_OVERHEAD_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's weights.

    Attributes:
        updates: a linear layer's name ("transformer.h.0.attn.c_attn") -> its updates; several where parts of its
            outputs were trained apart.
        saved: a module ("transformer.wte", "lm_head") -> the weight that replaces the model's.
    """

    config: AdapterConfig
    updates: dict[str, list[LowRankUpdate]]
    saved: dict[str, torch.Tensor]


@dataclass(slots=True)
class _Factors:
    tensor: AdapterTensor
    found: dict[str, torch.Tensor] = field(default_factory=dict)


def read_adapter(folder: Path, model: ModelConfig, max_rank: int | None = None) -> Adapter:
    """Reads the adapter in a folder.

    Args:
        folder: holds `adapter_config.json` and `adapter_model.safetensors` or `.bin`.
        model: the numbers of the model that it is for.
        max_rank: the largest rank its factors may have; None is no limit.

    Raises:
        AdapterError: something is missing, malformed, made for another model, not a number or not supported.
    """
    config = AdapterConfig.from_folder(folder)
    if max_rank is not None and config.max_rank > max_rank:
        raise AdapterError(
            f"{folder}: its rank is {config.max_rank}, and adapters may have at most {max_rank} (--max-lora-rank)"
        )
    path = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if path is None:
        raise AdapterError(f"{folder}: holds neither {' nor '.join(WEIGHT_FILES)}")
    try:
        return _read(path, config, model)
    except AdapterError:
        raise
    except CheckpointError as error:
        raise AdapterError(str(error)) from error


def _read(path: Path, config: AdapterConfig, model: ModelConfig) -> Adapter:
    _refuse_strange_size(path, config, model)
    if path.suffix == ".safetensors":  # before its numbers are touched
        for name, info in read_header(path).items():
            tensor = identify(name, config, model)
            if tensor is not None:
                check_shape(tensor, info.shape, config)
    factors: dict[str, _Factors] = {}
    saved: dict[str, torch.Tensor] = {}
    for name, data in iterate_tensors(path):
        tensor = identify(name, config, model)
        if tensor is None:
            continue
        check_shape(tensor, tuple(data.shape), config)
        _refuse_no_numbers(tensor, data, path)
        where = saved if not tensor.factor else factors.setdefault(tensor.stored_module, _Factors(tensor)).found
        key = tensor.factor or tensor.module
        if key in where:
            raise AdapterError(f"{path}: tensor {name!r} is there twice")
        where[key] = data
    return Adapter(config, _updates(factors, config, path), _saved(saved, config, path))


def _refuse_strange_size(path: Path, config: AdapterConfig, model: ModelConfig) -> None:
    """Refuses a file larger than all that could be in it, before it is opened."""
    num_factors = sum(config.max_rank * (shape.num_inputs + 2 * shape.num_outputs)
                      for shape in linear_shapes(model).values()) * model.num_layers  # fmt: skip
    limit = 8 * (num_factors + 4 * model.vocab_size * model.hidden_size) + _MAX_OVERHEAD_BYTES
    size = path.stat().st_size
    if size > limit:
        raise AdapterError(f"{path}: has {size:,} bytes; an adapter of this rank for this model has at most {limit:,}")


def _refuse_no_numbers(tensor: AdapterTensor, data: torch.Tensor, path: Path) -> None:
    if data.dtype not in _DTYPES:
        raise AdapterError(
            f"{path}: tensor {tensor.stored_name!r} is {str(data.dtype).removeprefix('torch.')}; float32, bfloat16 and"
            " float16 are read"
        )
    if not bool(torch.isfinite(data).all()):
        raise AdapterError(f"{path}: tensor {tensor.stored_name!r} holds values that are no numbers (NaN or infinite)")


def _updates(factors: dict[str, _Factors], config: AdapterConfig, path: Path) -> dict[str, list[LowRankUpdate]]:
    updates: dict[str, list[LowRankUpdate]] = {}
    for stored, each in factors.items():
        tensor, found = each.tensor, each.found
        for factor in ("A", "B"):
            if factor not in found:
                raise AdapterError(f"{path}: lora_{factor} of {stored!r} is missing; is the file complete?")
        update = LowRankUpdate(tensor.first_output, found["A"], found["B"], config.scaling_of(stored))
        updates.setdefault(tensor.module, []).append(update)
    for module, several in updates.items():
        several.sort(key=lambda update: update.first_output)
        for before, after in itertools.pairwise(several):
            if before.outputs.stop > after.first_output:
                raise AdapterError(f"{path}: {module!r} is trained twice, under two names")
    trained = {stored.rsplit(".", 1)[-1] for stored in factors}
    for target in config.targets or ():
        if target not in trained:
            raise AdapterError(f"{path}: has no weights of {target!r}, which {config.path.name} says was trained")
    if not updates and not config.saved_modules:
        raise AdapterError(f"{path}: holds no weights")
    return updates


def _saved(saved: dict[str, torch.Tensor], config: AdapterConfig, path: Path) -> dict[str, torch.Tensor]:
    for module in config.saved_modules:
        if module not in saved:
            raise AdapterError(f"{path}: has no weights of {module!r}, which {config.path.name} says was trained")
    return saved
