"""Sequences of random queries, keys and values, run through a backend's attention in any mix, and what is exact."""

from __future__ import annotations

import math
import random

import torch

from model.backends.torch_backend import TorchBackend
from model.contract.config import ModelConfig
from model.execution.forward_batch import ForwardBatch, SequenceSpan
from model.execution.kv_cache import KVCache, allocate_kv_cache

CPU = torch.device("cpu")
NUM_HEADS = 3
NUM_LAYERS = 2

CONFIG = ModelConfig(
    vocab_size=100,
    hidden_size=NUM_HEADS * 16,
    num_layers=NUM_LAYERS,
    num_heads=NUM_HEADS,
    head_dim=16,
    intermediate_size=8,
    seq_length=20,
    rotary_base=10000.0,
    rotary_dim=16,
    layer_norm_epsilon=1e-6,
    use_dynamic_ntk=True,
    use_logn_attn=True,
    has_bias=False,
    declared_dtype=None,
    quantization=None,
)
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}



class RandomSequence:
    """Queries, keys and values of a whole sequence, and what attention over all of it gives in float64."""

    def __init__(self, config: ModelConfig, length: int, alpha: float, table: list[int], dtype: torch.dtype) -> None:
        self.alpha = alpha
        self.table = table
        self.length = length
        self.num_done = 0
        self.qkv = torch.randn(NUM_LAYERS, length, 3 * NUM_HEADS * config.head_dim).to(dtype)
        windows = config.attention_windows or (0,) * NUM_LAYERS
        self.expected = torch.stack(
            [exact_attention(layer, alpha, config, window) for layer, window in zip(self.qkv, windows, strict=True)]
        )

    def span(self, num_tokens: int) -> SequenceSpan:
        return SequenceSpan([0] * num_tokens, self.num_done, self.alpha, self.table, 1)


def exact_attention(
    qkv: torch.Tensor, alpha: float, config: ModelConfig, window: int = 0, first: int = 0
) -> torch.Tensor:
    """[T, 3 * heads * head_dim] to [T, heads * head_dim] in float64, as the published code has it; 0 before `first`."""
    length, dim, half = len(qkv), config.head_dim, config.rotary_dim // 2
    q, k, v = qkv.double().view(length, 3, NUM_HEADS, dim).unbind(1)
    base = config.rotary_base * alpha ** (config.rotary_dim / (config.rotary_dim - 2))
    positions = torch.arange(length, dtype=torch.float64)
    angles = positions[:, None, None] * base ** (-torch.arange(half) / half)

    def rotated(x: torch.Tensor) -> torch.Tensor:
        x1, x2, rest = x.split([half, half, dim - 2 * half], -1)
        return torch.cat([x1 * angles.cos() - x2 * angles.sin(), x2 * angles.cos() + x1 * angles.sin(), rest], -1)

    queries, keys = rotated(q), rotated(k)
    if config.use_logn_attn:
        queries *= ((positions + 1).log() / math.log(config.seq_length)).clamp_min(1.0)[:, None, None]
    out = torch.zeros(length, NUM_HEADS, dim, dtype=torch.float64)
    for p in range(first, length):
        seen = slice(max(0, p + 1 - window) if window else 0, p + 1)
        scores = torch.einsum("hd,phd->hp", queries[p], keys[seen]) / math.sqrt(dim)
        out[p] = torch.einsum("hp,phd->hd", scores.softmax(-1), v[seen])
    return out.flatten(1)


def nan_cache(config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype) -> KVCache:
    """A cache of NaNs: whoever reads a slot that was never written gets one."""
    cache = allocate_kv_cache(config, num_blocks=num_blocks, block_size=block_size, dtype=dtype, device=CPU)
    cache.data.fill_(math.nan)
    return cache


def run_step(
    backend: TorchBackend,
    config: ModelConfig,
    cache: KVCache,
    chunks: list[tuple[RandomSequence, int]],
    tolerance: float,
) -> None:
    batch = ForwardBatch.build([seq.span(n) for seq, n in chunks], config, cache.block_size, CPU)
    plan = backend.plan_attention(batch, cache)
    for layer in range(NUM_LAYERS):
        qkv = torch.cat([seq.qkv[layer, seq.num_done : seq.num_done + n] for seq, n in chunks])
        out = backend.attention(qkv, layer, batch, plan)
        expected = torch.cat([seq.expected[layer, seq.num_done : seq.num_done + n] for seq, n in chunks])
        assert out.dtype == qkv.dtype
        torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    for seq, n in chunks:
        seq.num_done += n


def deal_blocks(rng: random.Random, lengths: list[int], block_size: int, num_blocks: int) -> list[list[int]]:
    """Block tables in runs of random lengths, in random order; the last block number is left out."""
    numbers = list(range(num_blocks - 1))
    if rng.random() < 0.7:
        cuts = sorted(rng.sample(range(len(numbers)), rng.choice([3, 10, len(numbers) // 2])))
        pieces = [numbers[a:b] for a, b in zip([0, *cuts], [*cuts, len(numbers)], strict=True)]
        rng.shuffle(pieces)
        numbers = [n for piece in pieces for n in piece]
    tables = []
    for length in lengths:
        count = -(-length // block_size)
        tables.append(numbers[:count])
        del numbers[:count]
    return tables
