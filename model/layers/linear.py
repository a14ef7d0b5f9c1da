"""The linear layer of unquantised checkpoints, and the signature of whatever makes one.

The architecture never names a class: it is given `make_linear`, so a GPTQ checkpoint is built with GPTQ layers
from the start and nothing is swapped afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn

from model.backends.base import Backend, LinearKernel
from model.backends.weights import GroupedWeight
from model.distributed.shard import Cut, LinearShard
from model.execution.forward_batch import ForwardBatch
from model.quantization.grouped import expand


class MakeLinear(Protocol):
    """Makes one linear layer of a block."""

    def __call__(
        self, in_features: int, out_features: int, *, bias: bool, shard: LinearShard | None = None
    ) -> nn.Module:
        """Returns a layer whose tensors have no storage yet.

        It is called with x [T, in_features] and the step that its rows are of, and returns [T, out_features]. The step
        is there for layers that treat rows differently, such as one with an adapter for some requests; a plain one
        does not look at it. With a `shard` x and the result have the numbers of the rank's part.
        """
        ...


class Linear(nn.Module):
    """`x @ weight.T + bias` with the weight in whatever layout the backend reads fastest.

    Args:
        in_features: K.
        out_features: N.
        bias: whether the checkpoint has one.
        shard: the part of it that this rank has; None is all.
        backend: lays out the weight once loaded, and multiplies.
        dtype: dtype of weight and activations.
        wide_results: see `Backend.prepare_linear`.
        quantize: packs the weight as soon as it is there; None where it should, or must, stay as it is.

    Attributes:
        is_expanded: whether its weight was grouped, and is kept as numbers because the backend cannot multiply it so.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        backend: Backend,
        dtype: torch.dtype,
        wide_results: bool = False,
        quantize: Callable[[torch.Tensor], GroupedWeight | None] | None = None,
        shard: LinearShard | None = None,
    ) -> None:
        super().__init__()
        self.cuts: dict[str, Cut | None] = {}
        if shard is not None:
            self.cuts = {"weight": shard.output_cut(0) or shard.input_cut(1), "bias": shard.output_cut(0)}
            in_features, out_features = shard.num_inputs, shard.num_outputs
        self.shard = shard
        self.weight: nn.Parameter | None = nn.Parameter(
            torch.empty(out_features, in_features, dtype=dtype, device="meta"), requires_grad=False
        )
        self.bias: nn.Parameter | None = None
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, dtype=dtype, device="meta"), requires_grad=False)
        self._backend = backend
        self._dtype = dtype
        self._wide_results = wide_results
        self._quantize: Callable[[torch.Tensor], GroupedWeight | None] | None = None
        if quantize is not None:
            self.quantize_with(quantize)
        self._grouped: GroupedWeight | None = None
        self.is_expanded = False
        self.kernel: LinearKernel | None = None

    def quantize_with(self, quantize: Callable[[torch.Tensor], GroupedWeight | None]) -> None:
        """Has the weight packed as soon as it is loaded; to be called before."""
        self._quantize = quantize
        self.stored_dtype_tensors = frozenset({"weight"})  # it is packed from the file's numbers, not from rounded ones

    def take_grouped(self, weight: GroupedWeight) -> int:
        """Takes a weight as the file stores it, instead of numbers; returns its bytes."""
        self._grouped = weight
        return weight.num_bytes

    def finish_loading(self) -> int:
        """Hands the loaded tensors to the backend and lets go of them, so that no second copy stays.

        Returns:
            Bytes of the weight and bias.
        """
        bias = None if self.bias is None else self.bias.data
        if self.shard is not None and not self.shard.keeps_bias:
            bias = None
        grouped = self._grouped
        if grouped is None and self._quantize is not None:
            assert self.weight is not None
            grouped = self._quantize(self.weight.data)
        if grouped is not None:
            self.weight = self.bias = self._grouped = None
            packed = self._backend.prepare_grouped_linear(grouped, bias, self._dtype, wide_results=self._wide_results)
            if packed is not None:
                self.kernel, num_bytes = packed
                return num_bytes
            self.is_expanded = True
            weight = expand(grouped, self._dtype)
        else:
            assert self.weight is not None
            weight = self.weight.data.to(self._dtype)
        self.weight = None
        self.bias = None
        num_bytes = weight.nbytes + (0 if bias is None else bias.nbytes)
        self.kernel = self._backend.prepare_linear(weight, bias, wide_results=self._wide_results)
        return num_bytes

    def forward(self, x: torch.Tensor, batch: ForwardBatch | None) -> torch.Tensor:
        """Maps [num_tokens, in_features] to [num_tokens, out_features]; see `MakeLinear`.

        The output layer, whose rows are not a step's, is given no batch.
        """
        assert self.kernel is not None, "forward before finish_loading"
        return self.kernel(x)
