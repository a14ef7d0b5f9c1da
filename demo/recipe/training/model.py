"""The architecture as a differentiable module, its parameters named as the checkpoint's tensors.

Training needs gradients and whole documents, but no paged cache and no scheduler. The module computes the same as the
served architecture; a test compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from demo.recipe.training.attention import causal_attention
from demo.recipe.training.attention_loss import AttentionLoss

See = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The numbers of `config.json` that the computation depends on.

    Attributes:
        intermediate_size: as published: w1 and w2 have half as many outputs each.
        seq_length: the trained length; dynamic NTK and LogN begin to act beyond it.
    """

    vocab_size: int
    hidden_size: int = 256
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    kv_channels: int = 64
    intermediate_size: int = 1024
    seq_length: int = 2048
    rotary_emb_base: float = 1e6
    layer_norm_epsilon: float = 1e-6
    use_dynamic_ntk: bool = True
    use_logn_attn: bool = True


class RMSNorm(nn.Module):
    """Normalises in float32, casts back, then scales."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Returns x normalised over its last dimension."""
        if x.dtype == torch.float32:
            return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)
        return F.rms_norm(x.float(), (x.shape[-1],), None, self.eps).to(x.dtype) * self.weight.to(x.dtype)


class Attention(nn.Module):
    """Causal attention with rotary positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.head_dim = config.kv_channels
        inner = self.num_heads * self.head_dim
        self.c_attn = nn.Linear(config.hidden_size, 3 * inner, bias=True)
        self.c_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rotary: Rotary, cache: LayerCache | None = None, see: See | None = None) -> Tensor:
        """x: [batch, length, hidden]; with a cache, x are the tokens after the cached ones."""
        batch, length, _ = x.shape
        qkv = self.c_attn(x).view(batch, length, 3, self.num_heads, self.head_dim)
        q, k, v = (t.transpose(1, 2) for t in qkv.unbind(2))
        q = rotary.rotate(q)
        if rotary.logn is not None:
            q = (q.float() * rotary.logn).to(q.dtype)
        k = rotary.rotate(k)
        if see is not None:
            see(q, k)
        if cache is None:
            out = causal_attention(q, k, v)
        else:
            k, v, mask = cache.append(k, v, rotary.positions)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.c_proj(out.transpose(1, 2).reshape(batch, length, -1))


class MLP(nn.Module):
    """`c_proj(w1(x) * silu(w2(x)))`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        half = config.intermediate_size // 2
        self.w1 = nn.Linear(config.hidden_size, half, bias=False)
        self.w2 = nn.Linear(config.hidden_size, half, bias=False)
        self.c_proj = nn.Linear(half, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., hidden]."""
        return self.c_proj(self.w1(x) * F.silu(self.w2(x)))


class Block(nn.Module):
    """One layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln_1 = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rotary: Rotary, cache: LayerCache | None = None, see: See | None = None) -> Tensor:
        """x: [batch, length, hidden]; `see` is shown the queries and keys."""
        x = x + self.attn(self.ln_1(x), rotary, cache, see)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Everything but the output layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.h = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.ln_f = RMSNorm(config.hidden_size, config.layer_norm_epsilon)


class QwenForTraining(nn.Module):
    """The whole model; `state_dict()` has the published tensor names and nothing else."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._init_weights()

    def _init_weights(self) -> None:
        config = self.config
        out_std = 1.0 / math.sqrt(config.hidden_size) / math.sqrt(2 * config.num_hidden_layers)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "c_proj" in name:
                nn.init.normal_(parameter, std=out_std)
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=1.0 / math.sqrt(config.hidden_size))
        # Copying reads the embedding and writes with the output layer: if both begin alike, copying is easy to learn.
        nn.init.normal_(self.transformer.wte.weight, std=0.3)
        with torch.no_grad():
            self.lm_head.weight.copy_(self.transformer.wte.weight * (0.5 / math.sqrt(config.hidden_size) / 0.3))

    def hidden(
        self,
        ids: Tensor,
        caches: Sequence[LayerCache] | None = None,
        prompt_len: int | None = None,
        attention_loss: AttentionLoss | None = None,
    ) -> Tensor:
        """Returns the normalised last hidden states.

        Args:
            ids: [batch, length] int64; rows are padded on the right and all begin at position 0, or, with caches,
                at the position after what the row's cache holds.
            caches: one a layer.
            prompt_len: fixes the NTK alpha; the length of `ids` if None.
            attention_loss: sees each layer's queries, keys and output.
        """
        dtype = torch.get_autocast_dtype(ids.device.type) if torch.is_autocast_enabled(ids.device.type) else None
        positions, end = torch.arange(ids.shape[1], device=ids.device), ids.shape[1]
        if caches is not None:
            positions = caches[0].lengths[:, None] + positions
            end = int(positions.max()) + 1
        rotary = Rotary(self.config, positions, end, prompt_len or ids.shape[1])
        x = self.transformer.wte(ids)
        if dtype is not None:
            x = x.to(dtype)
        for i, block in enumerate(self.transformer.h):
            see = partial(attention_loss.see, i) if attention_loss else None
            x = block(x, rotary, caches[i] if caches else None, see)
            if attention_loss:
                attention_loss.read(i, x, lambda known: self.lm_head(self.transformer.ln_f(known)))
        if caches:
            for cache in caches:
                cache.lengths = cache.lengths + ids.shape[1]
        return self.transformer.ln_f(x)

    def forward(self, ids: Tensor) -> Tensor:
        """Returns logits [batch, length, vocab_size] of ids [batch, length]."""
        return self.lm_head(self.hidden(ids))

    def loss(self, ids: Tensor, weights: Tensor, attention_loss: AttentionLoss | None = None) -> Tensor:
        """Weighted sum of the cross entropies of the next tokens.

        Args:
            ids: [batch, length].
            weights: [batch, length] float32; the weight of predicting `ids` at that place. The output layer is
                computed only where it is not 0.
            attention_loss: collects the auxiliary loss.
        """
        hidden = self.hidden(ids, attention_loss=attention_loss)[:, :-1]
        weights = weights[:, 1:]
        chosen = weights > 0
        logits = self.lm_head(hidden[chosen])
        each = F.cross_entropy(logits.float(), ids[:, 1:][chosen], reduction="none")
        weights = weights[chosen]
        return (each * weights).sum()


class Rotary:
    """Rotation angles (and LogN factors) of positions, computed once per forward pass.

    Args:
        positions: [length] or [batch, length].
        end: one more than the largest position.
        prompt_len: determines the NTK alpha.
    """

    def __init__(self, config: ModelConfig, positions: Tensor, end: int, prompt_len: int) -> None:
        self.positions = positions
        dim = config.kv_channels
        base = config.rotary_emb_base
        if config.use_dynamic_ntk:
            base *= ntk_alpha(prompt_len, config.seq_length) ** (dim / (dim - 2))
        steps = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim
        angles = positions[..., None].float() * (1.0 / base**steps)
        angles = torch.cat([angles, angles], dim=-1)
        if angles.ndim == 3:
            angles = angles[:, None]
        self.cos, self.sin = angles.cos(), angles.sin()
        self.sin = torch.cat([-self.sin[..., : dim // 2], self.sin[..., dim // 2 :]], dim=-1)
        self.logn: Tensor | None = None
        if config.use_logn_attn and end > config.seq_length:
            factor = (positions + 1).float().log() / math.log(config.seq_length)
            factor = factor.clamp(min=1.0)[..., None]
            self.logn = factor[:, None] if factor.ndim == 3 else factor

    def rotate(self, x: Tensor) -> Tensor:
        """x: [batch, heads, length, head_dim]; returned in its own dtype."""
        half = x.shape[-1] // 2
        y = x.float()
        swapped = torch.cat([y[..., half:], y[..., :half]], dim=-1)
        return (y * self.cos + swapped * self.sin).to(x.dtype)


def ntk_alpha(prompt_len: int, seq_length: int) -> float:
    """Returns the alpha of dynamic NTK for a prompt length."""
    return max(1.0, 2.0 ** math.ceil(math.log2(prompt_len / seq_length) + 1) - 1)


class LayerCache:
    """Keys and values of one layer for greedy decoding of rows of different lengths.

    Attributes:
        lengths: [batch] int64, tokens held a row.
    """

    def __init__(self, config: ModelConfig, batch: int, max_length: int, device: torch.device | str = "cpu") -> None:
        shape = (batch, config.num_attention_heads, max_length, config.kv_channels)
        self.k = torch.zeros(shape, device=device)
        self.v = torch.zeros(shape, device=device)
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)

    def append(self, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Stores new keys and values [batch, heads, length, dim] at `positions` [batch, length].

        Returns:
            All keys, all values, and the mask [batch, 1, length, held] of the keys that each query may see.
        """
        rows = torch.arange(k.shape[0], device=k.device)[:, None]
        self.k[rows, :, positions] = k.transpose(1, 2).float()
        self.v[rows, :, positions] = v.transpose(1, 2).float()
        held = int(positions.max()) + 1
        mask = torch.arange(held, device=k.device)[None, None, None] <= positions[:, None, :, None]
        return self.k[:, :, :held].to(k.dtype), self.v[:, :, :held].to(v.dtype), mask
