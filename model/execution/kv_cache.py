"""The paged KV cache: one allocation, addressed by slot.

Layout [num_layers, 2, num_kv_heads, num_slots, head_dim]: the slots of a head lie next to each other, so the keys of
consecutive blocks are one strided view and attention reads them in place. (Gathering 16-token pages into a
contiguous copy first costs seven to ten times the attention itself on a CPU.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model.contract.config import ModelConfig


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys (after rotation) and values of every block.

    Attributes:
        data: [num_layers, 2, num_kv_heads, num_blocks * block_size, head_dim]; index 0 of dim 1 is keys, 1 values.
        block_size: tokens in a block.
        scales: [num_layers, 2, num_kv_heads, num_slots] float32 for int8 data: a value is its integer times its scale.
            None where the data are numbers as they are.
        windows: how many of the last positions each layer reads, 0 for all; nothing where every layer reads all.
    """

    data: torch.Tensor
    block_size: int
    scales: torch.Tensor | None = None
    windows: tuple[int, ...] = ()

    def window_of(self, layer: int) -> int:
        """How many of the last positions a layer reads; 0 for all."""
        return self.windows[layer] if self.windows else 0

    @property
    def num_blocks(self) -> int:
        """Number of blocks in the pool."""
        return self.data.shape[3] // self.block_size

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole pool."""
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)


def kv_cache_block_bytes(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block over all layers; int8 has a float32 scale for each token, head, key and value."""
    _, num_kv_heads, head_dim = config.attention_shape
    vector_bytes = head_dim * dtype.itemsize + (4 if dtype == torch.int8 else 0)
    return config.num_layers * 2 * num_kv_heads * block_size * vector_bytes


def allocate_kv_cache(
    config: ModelConfig, *, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> KVCache:
    """Reserves the pool. On a CPU its pages are only taken as they are first written."""
    _, num_kv_heads, head_dim = config.attention_shape
    shape = (config.num_layers, 2, num_kv_heads, num_blocks * block_size, head_dim)
    scales = torch.empty(shape[:-1], dtype=torch.float32, device=device) if dtype == torch.int8 else None
    return KVCache(torch.empty(shape, dtype=dtype, device=device), block_size, scales, config.attention_windows)


def quantize(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds vectors to int8, each with a scale of its own: its largest magnitude becomes 127.

    The published option has one scale and zero a token over all heads; a scale a head is finer.

    Args:
        x: [..., head_dim].

    Returns:
        integers of the same shape, int8, and scales [...] float32.
    """
    x = x.float()
    scales = x.abs().amax(-1).div_(127.0)
    integers = (x / scales.clamp_min(1e-30)[..., None]).round_()
    return integers.to(torch.int8), scales
