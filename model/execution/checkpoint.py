"""Fills a model that was built without storage with a checkpoint's tensors.

Strict: a tensor that is missing, unexpected, misshapen or of a foreign kind stops the load with one line that says
what and where. One tensor is in flight at a time, so memory peaks at the weights plus the largest tensor.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from model.architectures.causal_lm import CausalLM
from model.backends.weights import GroupedWeight
from model.contract.errors import CheckpointError
from model.contract.files.weight_files import find_weight_files
from model.contract.gguf.file import is_gguf, shards
from model.distributed.shard import Cut
from model.execution.tensor_files import iterate_tensors
from model.quantization.gguf_tensors import iterate_gguf
from model.quantization.grouped import expand, moved, part_of

logger = logging.getLogger(__name__)

_QUANTIZED_SUFFIXES = (".qweight", ".qzeros", ".scales", ".g_idx")

# What training frameworks put in front of every name, and what undoes it.
_WRAPPERS = {
    "base_model.model.": "peft's wrapping; save the result of merge_and_unload()",
    "module.": "the wrapping of data-parallel training; save model.module",
    "_orig_mod.": "torch.compile's wrapping; save model._orig_mod",
}

ProgressCallback = Callable[[int, int], None]


def load_weights(
    model: CausalLM, folder: Path, device: torch.device, on_progress: ProgressCallback | None = None
) -> int:
    """Fills a model whose tensors have no storage yet.

    A tensor takes the dtype that the model gave its placeholder, unless its module lists it in `stored_dtype_tensors`.
    Where its module has a `Cut` for it in `cuts`, only this rank's part is taken. `finish_loading` of a submodule is
    called as soon as its last tensor is there, and returns how many bytes it holds then; tensors that it lists in
    `optional_tensors` may be absent.

    Args:
        model: a model on the meta device; it says what the checkpoint's tensors are called in it.
        on_progress: called with (bytes read, bytes in all).

    Returns:
        Bytes that the model's weights take.

    Raises:
        CheckpointError: anything is missing, unexpected or misshapen.
    """
    target = _Target(model, device)
    paths = shards(folder) if is_gguf(folder) else find_weight_files(folder)
    total_bytes = sum(path.stat().st_size for path in paths)
    read_bytes = 0

    def is_wanted(name: str) -> bool:
        return model.parameter_name(name) is not None

    for path, name, tensor in _all_tensors(folder, paths, is_wanted):
        read_bytes += tensor.num_bytes if isinstance(tensor, GroupedWeight) else tensor.nbytes
        target.put(name, tensor, path)
        del tensor
        if on_progress is not None:
            on_progress(min(read_bytes, total_bytes), total_bytes)
    target.check_complete(folder)
    return target.num_bytes


def _all_tensors(
    folder: Path, paths: list[Path], is_wanted: Callable[[str], bool]
) -> Iterator[tuple[Path, str, torch.Tensor | GroupedWeight]]:
    if is_gguf(folder):
        for name, stored in iterate_gguf(folder, is_wanted):
            yield folder, name, stored
            del stored
        return
    for path in paths:
        for name, tensor in iterate_tensors(path, is_wanted):
            yield path, name, tensor
            del tensor


def told_by_name(name: str) -> str | None:
    """Says what the name of a tensor that no model has tells about the checkpoint, if anything."""
    if name.endswith(_QUANTIZED_SUFFIXES):
        return (
            f"tensor {name!r} is of a quantised checkpoint (GPTQ), but config.json has no quantization_config and there"
            " is no quantize_config.json; take one from where the checkpoint came from, or, if it was so made, write"
            ' {"bits": 4, "group_size": 128, "desc_act": false, "sym": true} into quantize_config.json'
        )
    for prefix, remedy in _WRAPPERS.items():
        if name.startswith(prefix):
            return f"tensor {name!r} carries {prefix!r} in front: {remedy}, or take it off all names"
    return None


class _Target:
    """The model being filled: which tensors it still waits for."""

    def __init__(self, model: CausalLM, device: torch.device) -> None:
        self._model = model
        self._device = device
        self._waiting: dict[str, tuple[nn.Module, str]] = {}
        self._missing_of: dict[nn.Module, int] = {}
        self._loaded: set[str] = set()
        self._bytes_of: dict[nn.Module, int] = {}
        for prefix, module in model.named_modules():
            tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            for attribute, _ in tensors:
                self._waiting[f"{prefix}.{attribute}" if prefix else attribute] = (module, attribute)
            if tensors:
                self._missing_of[module] = len(tensors)

    def put(self, name: str, tensor: torch.Tensor | GroupedWeight, path: Path) -> None:
        parameter = self._model.parameter_name(name)
        if parameter is None:
            return
        if parameter not in self._waiting:
            if parameter in self._loaded:
                raise CheckpointError(f"{path}: tensor {name!r} is stored twice")
            raise CheckpointError(
                f"{path}: "
                + (
                    told_by_name(name)
                    or f"unexpected tensor {name!r} {list(tensor.shape)}; config.json describes another architecture"
                )
            )
        module, attribute = self._waiting.pop(parameter)
        self._loaded.add(parameter)
        placeholder: torch.Tensor = getattr(module, attribute)
        cut: Cut | None = getattr(module, "cuts", {}).get(attribute)
        shape = placeholder.shape if cut is None else cut.stored_shape(placeholder.shape)
        if shape != tensor.shape:
            raise CheckpointError(
                f"{path}: tensor {name!r} has shape {list(tensor.shape)}, but "
                f"{'its metadata ask' if is_gguf(path) else 'config.json asks'} for {list(shape)}"
            )
        if isinstance(tensor, GroupedWeight):
            take_grouped = getattr(module, "take_grouped", None)
            part = tensor if cut is None else part_of(tensor, cut)
            if part is not None and attribute == "weight" and callable(take_grouped):
                tensor = part
                self._bytes_of[module] = self._bytes_of.get(module, 0) + take_grouped(moved(tensor, self._device))
                del tensor, part
                self._arrived(module)
                return
            tensor = expand(tensor, torch.float32)
        if placeholder.dtype.is_floating_point != tensor.dtype.is_floating_point:
            raise CheckpointError(f"{path}: tensor {name!r} is {tensor.dtype}, expected {placeholder.dtype}")
        keeps_dtype = attribute in getattr(module, "stored_dtype_tensors", ())
        dtype = tensor.dtype if keeps_dtype else placeholder.dtype
        if cut is not None:
            tensor = cut.of(tensor)  # of a mapped file the rest is never read
        # copy=True: a view of the mapped file would die with the file.
        own = tensor.to(device=self._device, dtype=dtype, copy=True, memory_format=torch.contiguous_format)
        self._bytes_of[module] = self._bytes_of.get(module, 0) + own.nbytes
        if attribute in module._parameters:
            module._parameters[attribute] = nn.Parameter(own, requires_grad=False)
        else:
            module._buffers[attribute] = own
        del own
        self._arrived(module)

    def _arrived(self, module: nn.Module) -> None:
        self._missing_of[module] -= 1
        finish_loading = getattr(module, "finish_loading", None)
        if self._missing_of[module] == 0 and callable(finish_loading):
            self._bytes_of[module] = finish_loading()

    @property
    def num_bytes(self) -> int:
        return sum(self._bytes_of.values())

    def check_complete(self, folder: Path) -> None:
        for name, (module, attribute) in list(self._waiting.items()):
            if attribute in getattr(module, "optional_tensors", ()):
                del self._waiting[name]
                self._arrived(module)
        if self._waiting:
            names = list(self._waiting)
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise CheckpointError(f"{folder}: missing tensors: {', '.join(names[:3])}{more}")
        expanded = [name for name, module in self._model.named_modules() if getattr(module, "is_expanded", False)]
        if expanded:
            logger.warning(
                "%d quantised weights are kept as numbers, for the kernels do not take them (the first is %s)",
                len(expanded),
                expanded[0],
            )
