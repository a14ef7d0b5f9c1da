"""The arguments by which kernels of attention get one layer's part of the KV cache."""

from __future__ import annotations

import torch


def cache_arguments(
    cache: torch.Tensor, scales: torch.Tensor | None
) -> tuple[tuple[torch.Tensor | None, ...], tuple[int, int]]:
    """Returns keys, values and the scales of both, and how far apart heads are in the cache and among the scales.

    Args:
        cache: [2, num_heads, num_slots, head_dim], one layer's keys and values.
        scales: [2, num_heads, num_slots] float32 beside an int8 cache, else None.
    """
    if scales is None:
        return (cache[0], cache[1], None, None), (cache.stride(1), 0)
    return (cache[0], cache[1], scales[0], scales[1]), (cache.stride(1), scales.stride(1))
