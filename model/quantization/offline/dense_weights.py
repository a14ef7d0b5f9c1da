"""Reads a published checkpoint's weights as plain tensors, a block at a time, whatever form the file keeps them in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import nn

from model.architectures.qwen import is_saved_buffer
from model.backends.base import LinearKernel
from model.backends.torch_backend import TorchBackend
from model.backends.weights import GPTQTensors
from model.contract.errors import CheckpointError
from model.contract.files.checkpoint_folder import gguf_in
from model.contract.files.linears import linear_shapes
from model.contract.files.model_config import read_model_config
from model.contract.files.weight_files import EMBEDDING
from model.contract.gguf.file import is_gguf
from model.execution.tensor_files import stored_rows
from model.quantization import linear_maker
from model.quantization.offline.tensor_source import TensorSource

LAST = ("transformer.ln_f.weight", "lm_head.weight")
NORMS = ("ln_1.weight", "ln_2.weight")


class DenseWeights:
    """The tensors of a checkpoint under their published names.

    Attributes:
        dtype: the dtype of its embedding.

    Raises:
        CheckpointError: it is no checkpoint of ours, or holds a tensor that none has.
    """

    def __init__(self, folder: Path) -> None:
        self.config = read_model_config(folder, stored_rows)
        if is_gguf(gguf_in(folder)):
            raise CheckpointError(f"{folder}: is a GGUF file; start from the checkpoint that it was made from")
        self._folder = folder
        self._source = TensorSource(folder, is_quantized=self.config.quantization is not None)
        self._make_linear = linear_maker(self.config, keeper := _Keeper(), torch.float32)
        self._keeper = keeper
        self._refuse_unexpected()
        self.dtype = self._outer(EMBEDDING).dtype

    @property
    def is_expanded(self) -> bool:
        """Whether its linears are quantised; they come as float32 then, unrounded."""
        return self.config.quantization is not None

    def groups(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yields all tensors by their full names, the embedding first, then block after block.

        They may be views of a file. Quantised checkpoints store biases everywhere: only c_attn's come, and any that is
        not zero.

        Raises:
            CheckpointError: one is missing or misshapen, or holds infinities or NaN.
        """
        yield {EMBEDDING: self._outer(EMBEDDING)}
        for layer in range(self.config.num_layers):
            yield self._block(f"transformer.h.{layer}.")
        for name in LAST:
            yield {name: self._outer(name)}

    def _outer(self, name: str) -> torch.Tensor:
        rows = () if name == LAST[0] else (self.config.vocab_size,)
        return self._read([name], {name: (*rows, self.config.hidden_size)})[name]

    def _block(self, prefix: str) -> dict[str, torch.Tensor]:
        tensors = self._read([prefix + name for name in NORMS], {prefix + n: (self.config.hidden_size,) for n in NORMS})
        for name, (num_inputs, num_outputs) in linear_shapes(self.config).items():
            layer = self._make_linear(num_inputs, num_outputs, bias=f"{prefix}{name}.bias" in self._source)
            weight, bias = self._fill(layer, f"{prefix}{name}")
            tensors[f"{prefix}{name}.weight"] = weight
            if name == "attn.c_attn" and bias is None:
                bias = torch.zeros(num_outputs, dtype=weight.dtype)
            is_needed = name == "attn.c_attn" or not self.is_expanded
            if bias is not None and (is_needed or bool(bias.any())):
                tensors[f"{prefix}{name}.bias"] = bias
        return tensors

    def _fill(self, layer: nn.Module, prefix: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Reads the tensors of a linear; returns the weight and bias that they stand for."""
        parameters = dict(layer.named_parameters())
        optional: frozenset[str] = getattr(layer, "optional_tensors", frozenset())
        names = [name for name in parameters if name not in optional or f"{prefix}.{name}" in self._source]
        shapes = {f"{prefix}.{name}": tuple(parameters[name].shape) for name in names}
        stored = self._read(shapes, shapes)
        if not self.is_expanded:  # as it is stored
            return stored[f"{prefix}.weight"], stored.get(f"{prefix}.bias")
        for name in names:
            setattr(layer, name, nn.Parameter(stored[f"{prefix}.{name}"], requires_grad=False))
        try:
            layer.finish_loading()  # type: ignore[operator]  # which every linear of ours has
        except CheckpointError as error:
            raise CheckpointError(f"{self._folder}: {prefix}: {error}") from error
        return self._keeper.take()

    def _read(self, names: Iterable[str], shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
        tensors = self._source.read(list(names), allow_integers=self.is_expanded)
        for name, tensor in tensors.items():
            if tuple(tensor.shape) != shapes[name]:
                raise CheckpointError(
                    f"{self._folder}: tensor {name!r} has shape {list(tensor.shape)}, but config.json asks for"
                    f" {list(shapes[name])}"
                )
        return tensors

    def _refuse_unexpected(self) -> None:
        """Refuses a checkpoint with tensors that would be left out."""
        known = {EMBEDDING, *LAST}
        for layer in range(self.config.num_layers):
            known |= {f"transformer.h.{layer}.{name}" for name in NORMS}
            for name, (num_inputs, num_outputs) in linear_shapes(self.config).items():
                linear = self._make_linear(num_inputs, num_outputs, bias=name == "attn.c_attn" or self.config.has_bias)
                known |= {f"transformer.h.{layer}.{name}.{key}" for key, _ in linear.named_parameters()}
        unexpected = [name for name in self._source.names if name not in known and not is_saved_buffer(name)]
        if unexpected and unexpected[0].endswith(("_scale", "_scale_inv")):
            raise CheckpointError(f"{self._folder}: its weights are FP8; start from the checkpoint they were made from")
        if unexpected:
            raise CheckpointError(
                f"{self._folder}: unexpected tensor {unexpected[0]!r}; config.json describes another architecture"
            )


class _Keeper(TorchBackend):
    """A backend that keeps the weight of the linear loaded last."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), own_kernels=False)
        self._kept: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    def take(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the weight of the linear loaded last, [N, K], and its bias [N] if it has one."""
        return self._kept.pop()

    def prepare_linear(
        self, weight: torch.Tensor, bias: torch.Tensor | None, *, wide_results: bool = False
    ) -> LinearKernel:
        """Keeps a plain weight."""
        self._kept.append((weight, bias))
        return lambda x: x

    def prepare_gptq_linear(
        self, weight: GPTQTensors, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> tuple[LinearKernel, int] | None:
        """Has the weight expanded."""
        return None
