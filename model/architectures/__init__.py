"""One file an architecture, and their registry by the class that checkpoints name."""

from __future__ import annotations

from collections.abc import Callable

import torch

from model.architectures.causal_lm import CausalLM
from model.architectures.qwen import QWenLMHeadModel
from model.backends.base import Backend
from model.contract.config import PUBLISHED_CLASS, ModelConfig
from model.distributed.ranks import ONE_RANK, Ranks
from model.layers.linear import MakeLinear

MakeModel = Callable[[ModelConfig, MakeLinear, Backend, torch.dtype, Ranks, range | None], CausalLM]

ARCHITECTURES: dict[str, MakeModel] = {PUBLISHED_CLASS: QWenLMHeadModel}


def make_model(
    config: ModelConfig,
    make_linear: MakeLinear,
    backend: Backend,
    dtype: torch.dtype,
    ranks: Ranks = ONE_RANK,
    layers: range | None = None,
) -> CausalLM:
    """Builds the model of a checkpoint, its tensors still without storage.

    A class that is not registered is a fork's of the published one: no other architecture has such a `config.json`.

    Args:
        make_linear: makes the linears of its blocks.
        dtype: dtype of activations and unquantised weights.
        ranks: this rank's line to those that share the model.
        layers: the layers of this rank's stage; None is all.
    """
    make = ARCHITECTURES.get(config.architecture, ARCHITECTURES[PUBLISHED_CLASS])
    return make(config, make_linear, backend, dtype, ranks, layers)
