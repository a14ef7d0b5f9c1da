"""Chooses the linear layers that a checkpoint is built of, once, before anything is loaded."""

from __future__ import annotations

import functools

import torch

from model.backends.base import Backend
from model.contract.config import NO_QUANTIZATION, ModelConfig, require_can_quantize
from model.distributed.shard import LinearShard
from model.layers.linear import Linear, MakeLinear
from model.quantization.at_load import quantize_at_load
from model.quantization.awq import AWQLinear
from model.quantization.gptq import GPTQLinear


def linear_maker(
    config: ModelConfig, backend: Backend, dtype: torch.dtype, at_load: str = NO_QUANTIZATION
) -> MakeLinear:
    """Returns the function that makes the linears of a checkpoint's blocks.

    Args:
        backend: keeps the weights and multiplies.
        dtype: the activations' dtype.
        at_load: how to quantise weights while they are loaded; see `model.contract.config.QUANTIZED_BITS`.

    Raises:
        ConfigError: it is to be quantised at load, and is quantised already.
    """
    require_can_quantize(config, at_load)
    quantize = None if at_load == NO_QUANTIZATION else functools.partial(quantize_at_load, mode=at_load)
    quantization = config.quantization
    if quantization is None:
        return functools.partial(Linear, backend=backend, dtype=dtype, quantize=quantize)
    kind = AWQLinear if quantization.quant_method == "awq" else GPTQLinear

    def make_quantized_linear(
        in_features: int, out_features: int, *, bias: bool, shard: LinearShard | None = None
    ) -> GPTQLinear:
        # Whether the unquantised layer has a bias says nothing: quantised ones store one, often of zeros.
        return kind(in_features, out_features, quantization=quantization, backend=backend, dtype=dtype, shard=shard)

    return make_quantized_linear
