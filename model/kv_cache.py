"""The paged KV cache: one allocation, addressed by slot.

Layout [num_layers, 2, num_heads, num_slots, head_dim]: the slots of a head lie next to each other, so the keys of
consecutive blocks are one strided view and attention reads them in place. (Gathering 16-token pages into a
contiguous copy first costs seven to ten times the attention itself on a CPU.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys (after rotation) and values of every block.

    Attributes:
        data: [num_layers, 2, num_heads, num_blocks * block_size, head_dim]; index 0 of dim 1 is keys, 1 values.
        block_size: tokens in a block.
    """

    data: torch.Tensor
    block_size: int

    @property
    def num_blocks(self) -> int:
        """Blocks in the pool."""
        return self.data.shape[3] // self.block_size


def kv_cache_block_bytes(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block over all layers."""
    return config.num_layers * 2 * config.num_heads * block_size * config.head_dim * dtype.itemsize


def allocate_kv_cache(
    config: ModelConfig, *, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> KVCache:
    """Reserves the pool. On a CPU its pages are only taken as they are first written."""
    shape = (config.num_layers, 2, config.num_heads, num_blocks * block_size, config.head_dim)
    return KVCache(torch.empty(shape, dtype=dtype, device=device), block_size)
