"""The first-generation Qwen transformer over a flat token batch.

Attributes are named as the checkpoint's keys, so loading is by name. The arithmetic is that of the published
modeling_qwen.py; what a device does with it is the backend's business.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import nn

from model.architectures.causal_lm import CausalLM
from model.backends.base import Backend, LinearKernel
from model.backends.weights import GroupedWeight
from model.contract.config import ModelConfig
from model.distributed.ranks import ONE_RANK, Ranks
from model.distributed.shard import column_parallel, row_parallel
from model.execution.forward_batch import ForwardBatch
from model.execution.kv_cache import KVCache
from model.layers.embedding import Embedding, VocabParallelEmbedding
from model.layers.linear import Linear, MakeLinear
from model.layers.norm import RMSNorm

_SAVED_BUFFERS = (".rotary_emb.inv_freq", ".attn.masked_bias", ".attn.bias", ".logn_tensor")


def is_saved_buffer(name: str) -> bool:
    """Whether a stored tensor is a buffer that some releases saved along, and no weight."""
    return name.endswith(_SAVED_BUFFERS)


class QWenAttention(nn.Module):
    """Multi-head attention; q, k and v come from one projection with a bias."""

    def __init__(
        self, config: ModelConfig, layer: int, make_linear: MakeLinear, backend: Backend, ranks: Ranks
    ) -> None:
        super().__init__()
        hidden, sizes = config.hidden_size, config.attention_shape.qkv_sizes
        rank, size = ranks.place.rank, ranks.place.size
        columns = column_parallel(hidden, sizes, rank, size)
        rows = row_parallel(sizes[0], hidden, rank, size)
        self.c_attn = make_linear(hidden, sum(sizes), bias=True, shard=columns)
        self.c_proj = make_linear(sizes[0], hidden, bias=config.has_bias, shard=rows)
        self._ranks = ranks
        self._layer = layer
        self._backend = backend

    def forward(self, x: torch.Tensor, batch: ForwardBatch, plan: Any) -> torch.Tensor:
        """Maps [T, hidden] to [T, hidden]; writes this layer's keys and values."""
        mixed = self._backend.attention(self.c_attn(x, batch), self._layer, batch, plan)
        return self._ranks.sum(self.c_proj(mixed, batch))


class QWenMLP(nn.Module):
    """`c_proj(w1(x) * silu(w2(x)))`; w1 and w2 have half of `intermediate_size` outputs each."""

    def __init__(self, config: ModelConfig, make_linear: MakeLinear, backend: Backend, ranks: Ranks) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size // 2
        rank, size = ranks.place.rank, ranks.place.size
        columns = column_parallel(hidden, (inner,), rank, size)
        rows = row_parallel(inner, hidden, rank, size)
        self.w1 = make_linear(hidden, inner, bias=config.has_bias, shard=columns)
        self.w2 = make_linear(hidden, inner, bias=config.has_bias, shard=columns)
        self.c_proj = make_linear(inner, hidden, bias=config.has_bias, shard=rows)
        self._ranks = ranks
        self._backend = backend

    def forward(self, x: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """Maps [T, hidden] to [T, hidden]."""
        if self._gated is not None and batch.adapter_plan is None:
            inner = self._gated(x)
        else:
            inner = self._backend.silu_mul(self.w2(x, batch), self.w1(x, batch))
        return self._ranks.sum(self.c_proj(inner, batch))

    @cached_property
    def _gated(self) -> LinearKernel | None:
        """Computes everything before `c_proj` in one call, for rows without adapters."""
        gate, up = (getattr(layer, "kernel", None) for layer in (self.w2, self.w1))
        return None if gate is None or up is None else self._backend.gated_linear(gate, up)


class QWenBlock(nn.Module):
    """`x += attention(ln_1(x))`, then `x += mlp(ln_2(x))`, the sums kept in float32.

    The published code rounds them to the activations' type. Unrounded they cost nothing, and over the golden
    checkpoints bfloat16 then agrees with float32 about the next token in one place in a hundred more.
    """

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        make_linear: MakeLinear,
        backend: Backend,
        dtype: torch.dtype,
        ranks: Ranks,
    ) -> None:
        super().__init__()
        self.ln_1 = RMSNorm(config.hidden_size, config.layer_norm_epsilon, backend=backend, dtype=dtype)
        self.attn = QWenAttention(config, layer, make_linear, backend, ranks)
        self.ln_2 = RMSNorm(config.hidden_size, config.layer_norm_epsilon, backend=backend, dtype=dtype)
        self.mlp = QWenMLP(config, make_linear, backend, ranks)

    def forward(
        self, x: torch.Tensor, delta: torch.Tensor | None, batch: ForwardBatch, plan: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs the block; each sum is left to the norm that comes next, for a backend that makes one pass of both.

        Args:
            x: [T, hidden] float32, may be overwritten.
            delta: [T, hidden], still to be added to x, or None.
            batch: the step.
            plan: what `Backend.plan_attention` returned for the step.

        Returns:
            x and what is still to be added to it.
        """
        if delta is None:
            hidden = self.ln_1(x)
        else:
            hidden, x = self.ln_1.add(delta, x)
        hidden, x = self.ln_2.add(self.attn(hidden, batch, plan), x)
        return x, self.mlp(hidden, batch)


class QWenModel(nn.Module):
    """Embedding, blocks and the final norm, as far as this stage has them."""

    def __init__(
        self,
        config: ModelConfig,
        make_linear: MakeLinear,
        backend: Backend,
        dtype: torch.dtype,
        ranks: Ranks,
        layers: range,
    ) -> None:
        super().__init__()
        if ranks.place.is_first_stage and ranks.place.size == 1:
            self.wte = Embedding(config.vocab_size, config.hidden_size, dtype=dtype)
        elif ranks.place.is_first_stage:
            self.wte = VocabParallelEmbedding(config.vocab_size, config.hidden_size, dtype=dtype, ranks=ranks)
        # A block's name tells where it is in the checkpoint, its number where its keys and values are in the cache.
        self.h = nn.ModuleDict(
            {str(layer): QWenBlock(config, i, make_linear, backend, dtype, ranks) for i, layer in enumerate(layers)}
        )
        if ranks.place.is_last_stage:
            self.ln_f = RMSNorm(config.hidden_size, config.layer_norm_epsilon, backend=backend, dtype=dtype)


class QWenLMHeadModel(CausalLM):
    """The whole checkpoint, or a stage of it.

    Args:
        config: its numbers.
        make_linear: makes the five linears of each block; `lm_head` stays as it is unless `quantize_head` is called.
        backend: does the device work.
        dtype: dtype of activations and unquantised weights.
        ranks: the ranks that share heads, columns of the MLP, and rows of the vocabulary.
        layers: the checkpoint's layers that this stage has; None is all.
    """

    def __init__(
        self,
        config: ModelConfig,
        make_linear: MakeLinear,
        backend: Backend,
        dtype: torch.dtype,
        ranks: Ranks = ONE_RANK,
        layers: range | None = None,
    ) -> None:
        super().__init__()
        self._layers = range(config.num_layers) if layers is None else layers
        self.transformer = QWenModel(config, make_linear, backend, dtype, ranks, self._layers)
        if ranks.place.is_last_stage:
            self.lm_head = Linear(
                config.hidden_size,
                config.vocab_size,
                bias=False,
                backend=backend,
                dtype=dtype,
                wide_results=True,
                shard=column_parallel(config.hidden_size, (config.vocab_size,), ranks.place.rank, ranks.place.size),
            )
        self._config = config
        self._ranks = ranks
        self._backend = backend

    def parameter_name(self, checkpoint_name: str) -> str | None:
        """See `CausalLM`. The names are the attributes' own; some releases saved buffers along, which are computed."""
        is_elsewhere = self._ranks.place.num_stages > 1 and self._is_elsewhere(checkpoint_name)
        return None if is_elsewhere or is_saved_buffer(checkpoint_name) else checkpoint_name

    def _is_elsewhere(self, name: str) -> bool:
        """Whether a tensor belongs to another stage."""
        place = self._ranks.place
        if name.startswith("transformer.wte."):
            return not place.is_first_stage
        if name.startswith(("transformer.ln_f.", "lm_head.")):
            return not place.is_last_stage
        layer = name.removeprefix("transformer.h.").partition(".")[0]
        return layer.isdecimal() and int(layer) < self._config.num_layers and int(layer) not in self._layers

    def forward(self, batch: ForwardBatch, cache: KVCache) -> torch.Tensor:
        """See `CausalLM`."""
        plan = self._backend.plan_attention(batch, cache)
        x: torch.Tensor
        if self._ranks.place.is_first_stage:
            x = self.transformer.wte(batch.token_ids, batch).float()
        else:
            x = self._ranks.receive(len(batch.token_ids), self._config.hidden_size)
        delta: torch.Tensor | None = None
        for block in self.transformer.h.values():
            x, delta = block(x, delta, batch, plan)
        assert delta is not None
        if not self._ranks.place.is_last_stage:
            x += delta  # the sum that the norm of the next block would have made
            self._ranks.send(x)
            return x
        out, _ = self.transformer.ln_f.add(delta, x)
        return out

    def quantize_head(self, quantize: Callable[[torch.Tensor], GroupedWeight | None]) -> None:
        """See `CausalLM`."""
        if self._ranks.place.is_last_stage:
            self.lm_head.quantize_with(quantize)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `CausalLM`."""
        if not self._ranks.place.is_last_stage:
            return hidden
        out: torch.Tensor = self.lm_head(hidden, None)
        return self._ranks.gather(out.float(), self._config.vocab_size)
