"""Reads a checkpoint's tensors from disk into a model built without storage.

Strict: a tensor that is missing, unexpected, misshapen or of a foreign kind stops the load with one line that says
what and where. One tensor is in flight at a time, so memory peaks at the weights plus the largest tensor. Nothing
in a checkpoint is executed: safetensors, or torch's weights-only reader for `.bin` files.
"""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from model.architectures.causal_lm import CausalLM
from model.backends.base import GroupedWeight
from model.contract.errors import CheckpointError
from model.contract.files.weight_files import EMBEDDING, find_weight_files, rows_of_embedding
from model.contract.gguf.file import is_gguf, shards
from model.distributed.shard import Cut
from model.execution.fp8 import scaled
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


def stored_rows(folder: Path) -> int | None:
    """Returns how many rows the embedding in a folder's weights has, `.bin` files included; None where it is in none.

    Raises:
        CheckpointError: the weights cannot be read.
    """
    if is_gguf(folder):
        return None  # its config comes of the tensors
    for path in find_weight_files(folder):
        if path.suffix != ".safetensors":
            state, _ = _load_bin(path)  # mapped, not read
            if EMBEDDING in state:
                return state[EMBEDDING].shape[0]
    return rows_of_embedding(folder)


def iterate_tensors(path: Path, is_wanted: Callable[[str], bool] = bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the tensors of one file on the CPU, in their stored dtype; each may be a view of the file.

    Args:
        path: of the file.
        is_wanted: whether anybody will look at a tensor, by its name; that is so of all unless told.

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


def load_weights(
    model: CausalLM, folder: Path, device: torch.device, on_progress: ProgressCallback | None = None
) -> int:
    """Fills a model whose tensors have no storage yet.

    A tensor takes the dtype that the model gave its placeholder, unless its module lists it in `stored_dtype_tensors`.
    Of a tensor for which its module has a `Cut` in `cuts`, the part is taken that this rank has.
    A submodule with a `finish_loading` method is told as soon as its last tensor is there, and returns how many bytes
    it holds then; those it lists in `optional_tensors` may be absent.

    Args:
        model: built on the meta device; it says what the checkpoint's tensors are called in it.
        folder: of the checkpoint.
        device: where the tensors go.
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
