"""Initialises induction heads, so that a new model need not discover copying by itself.

Copying the token that followed an earlier occurrence of the current one takes two attention layers: a head that attends
to the previous token, and a later head that looks for places whose *previous* token equals the current one. Small
models find this pair only after millions of tokens, then learn quickly. Both heads are easily constructed: the biases
of `c_attn` and the rotary angles make a head attend one step back, and projections shared between the layers make the
second head. Everything stays trainable, and the architecture is unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor

from demo.recipe.training.model import Attention, Block, QwenForTraining

STEP_BACK_PAIRS = 10  # fast rotary pairs tell neighbours apart
STEP_BACK_STRENGTH = 5.0
MATCH_FROM = 0.55  # content is compared in the rotary pairs after this share: they are slow, so distance hardly matters
MATCH_STRENGTH = 2.6
NOTE = 0.6  # scale at which the first layer notes the previous token
WRITE = 3.0  # scale at which the later heads propose the token found


@torch.no_grad()
def write_copy_heads(model: QwenForTraining, seed: int = 0) -> None:
    """Overwrites a few heads' projections in place.

    Args:
        model: at least three layers and two heads.
        seed: seed of the random projections.
    """
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    size, dim = config.hidden_size, config.kv_channels
    layers = [block for block in model.transformer.h if isinstance(block, Block)]
    # The space that is read and the space of the notes must not overlap: notes would drown what later heads compare.
    spaces = _orthonormal(min(size, 4 * dim), size, generator).split(dim)
    for head in range(min(2, config.num_attention_heads)):
        seen, place = spaces[2 * head % len(spaces)], spaces[(2 * head + 1) % len(spaces)]
        _attend_back(layers[0].attn, head, dim, config.rotary_emb_base, steps=1)
        _set_value(layers[0].attn, head, dim, seen, place.T * NOTE)
        for layer in layers[1:3]:
            _match(layer.attn, head, dim, query=seen, key=place)
            read = _orthonormal(dim, size, generator)
            _set_value(layer.attn, head, dim, read, read.T * WRITE)
    _attend_back(layers[0].attn, 2, dim, config.rotary_emb_base, steps=2) if config.num_attention_heads > 3 else None


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    q, _ = torch.linalg.qr(torch.randn(columns, rows, generator=generator))
    return q.T.contiguous()


def _rows(attention: Attention, which: int, head: int, dim: int) -> slice:
    """Returns the rows of c_attn with a head's query (0), key (1) or value (2)."""
    start = which * attention.num_heads * dim + head * dim
    return slice(start, start + dim)


def _attend_back(attention: Attention, head: int, dim: int, base: float, steps: int) -> None:
    """Sets constant queries and keys whose rotated product is largest `steps` positions back."""
    half = dim // 2
    angles = steps * base ** (-torch.arange(half, dtype=torch.float32) / half)
    strength = torch.where(torch.arange(half) < STEP_BACK_PAIRS, STEP_BACK_STRENGTH, 0.0)
    query, key = (_rows(attention, which, head, dim) for which in (0, 1))
    attention.c_attn.weight[query] *= 0.3
    attention.c_attn.weight[key] *= 0.3
    # The query at position p is rotated by p; rotating it back by `steps` aligns it with the key at that position.
    attention.c_attn.bias[query] = torch.cat([strength * angles.cos(), -strength * angles.sin()])
    attention.c_attn.bias[key] = torch.cat([strength, torch.zeros(half)])


def _match(attention: Attention, head: int, dim: int, query: Tensor, key: Tensor) -> None:
    """Makes queries read one projection and keys another, and compares them in the slow rotary pairs only."""
    half = dim // 2
    slow = (torch.arange(half) >= int(MATCH_FROM * half)).float()
    mask = torch.cat([slow, slow])[:, None] * MATCH_STRENGTH
    attention.c_attn.weight[_rows(attention, 0, head, dim)] = query * mask
    attention.c_attn.weight[_rows(attention, 1, head, dim)] = key * mask


def _set_value(attention: Attention, head: int, dim: int, read: Tensor, write: Tensor) -> None:
    attention.c_attn.weight[_rows(attention, 2, head, dim)] = read
    attention.c_proj.weight[:, head * dim : (head + 1) * dim] = write
