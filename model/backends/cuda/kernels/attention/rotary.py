"""Rotary embedding, LogN and the write to the KV cache in one pass over q, k and v.

A program takes one token and a few heads. Each sequence's NTK alpha and LogN factor come as rows of cosines, sines and
query factors, so the kernel knows neither. A token with slot -1 (a row that only fills up a CUDA graph's batch) is
rotated but written nowhere: no block of the cache needs to be kept for such rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from model.backends.cuda.kernels.attention.cache_arguments import cache_arguments
from model.backends.cuda.kernels.attention.int8 import int8_from_float
from model.backends.cuda.kernels.dependent_launch import let_successor_start, wait_for_predecessor
from model.backends.cuda.kernels.launch import launch, next_power_of_2

_MAX_HEADS_PER_PROGRAM = 8


@triton.jit
def _write_to_cache(x, cache_ptr, scales_ptr, places, scale_places, mask, head_mask, IS_INT8: tl.constexpr):
    """Stores [heads, dims] float32; as int8 with one scale a head where the cache is int8."""
    if IS_INT8:
        largest = tl.max(tl.abs(tl.where(mask, x, 0.0)), 1)
        scale = largest / 127.0
        factor = 127.0 / tl.where(largest > 0, largest, 1.0)
        tl.store(scales_ptr + scale_places, scale, mask=head_mask)
        tl.store(cache_ptr + places, int8_from_float(x * factor[:, None]), mask=mask)
    else:
        tl.store(cache_ptr + places, x.to(cache_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _rotate_and_cache_kernel(
    qkv_ptr, cos_ptr, sin_ptr, query_scale_ptr, slots_ptr, query_ptr, keys_ptr, values_ptr, key_scales_ptr,
    value_scales_ptr,
    qkv_stride, head_stride, scale_head_stride,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HALF: tl.constexpr, IS_INT8: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, BLOCK_DIM: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    wait_for_predecessor(IS_DEPENDENT)
    let_successor_start(IS_DEPENDENT)
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    dims = tl.arange(0, BLOCK_DIM)
    head_mask = heads < NUM_HEADS
    mask = head_mask[:, None] & (dims < HEAD_DIM)[None, :]

    # Dimension d of the first half turns with d + HALF, that of the second with d - HALF; the rest stays.
    is_first = dims < HALF
    is_rotated = dims < 2 * HALF
    partner = tl.where(is_rotated, tl.where(is_first, dims + HALF, dims - HALF), dims)
    angle = tl.where(is_first, dims, dims - HALF)
    cos = tl.load(cos_ptr + token * HALF + angle, mask=is_rotated, other=1.0)
    sin = tl.load(sin_ptr + token * HALF + angle, mask=is_rotated, other=0.0)
    sin = tl.where(is_first, -sin, sin)

    row = qkv_ptr + token * qkv_stride
    own = heads[:, None] * HEAD_DIM + dims[None, :]
    other = heads[:, None] * HEAD_DIM + partner[None, :]
    scale = tl.load(query_scale_ptr + token)
    query = tl.load(row + own, mask=mask, other=0.0).to(tl.float32)
    query_partner = tl.load(row + other, mask=mask, other=0.0).to(tl.float32)
    query = query * (cos * scale)[None, :] + query_partner * (sin * scale)[None, :]
    query_places = query_ptr + token * (NUM_HEADS * HEAD_DIM) + own
    tl.store(query_places, query.to(query_ptr.dtype.element_ty), mask=mask)

    slot = tl.load(slots_ptr + token)
    if slot >= 0:
        places = heads[:, None].to(tl.int64) * head_stride + slot * HEAD_DIM + dims[None, :]
        scale_places = heads.to(tl.int64) * scale_head_stride + slot
        keys = row + NUM_HEADS * HEAD_DIM
        key = tl.load(keys + own, mask=mask, other=0.0).to(tl.float32)
        key_partner = tl.load(keys + other, mask=mask, other=0.0).to(tl.float32)
        key = key * cos[None, :] + key_partner * sin[None, :]
        _write_to_cache(key, keys_ptr, key_scales_ptr, places, scale_places, mask, head_mask, IS_INT8)
        value = tl.load(keys + NUM_HEADS * HEAD_DIM + own, mask=mask, other=0.0).to(tl.float32)
        _write_to_cache(value, values_ptr, value_scales_ptr, places, scale_places, mask, head_mask, IS_INT8)


def rotate_and_cache(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    query_scale: torch.Tensor,
    slots: torch.Tensor,
    cache: torch.Tensor,
    scales: torch.Tensor | None,
) -> torch.Tensor:
    """Rotates and scales the queries; rotates the keys and writes them and the values to their slots.

    Args:
        qkv: [T, 3 * num_heads * head_dim], q, k and v side by side; rows of any stride.
        cos: [T, rotary_dim / 2] float32, contiguous.
        sin: the same.
        query_scale: [T] float32.
        slots: [T] int64; -1 writes nothing.
        cache: [2, num_heads, num_slots, head_dim], one layer's keys and values.
        scales: [2, num_heads, num_slots] float32 beside an int8 cache, else None.

    Returns:
        the queries [T, num_heads, head_dim], contiguous, dtype of qkv.
    """
    _, num_heads, _, head_dim = cache.shape
    num_tokens = qkv.shape[0]
    query = torch.empty((num_tokens, num_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    block_heads = min(_MAX_HEADS_PER_PROGRAM, next_power_of_2(num_heads))
    cache_pointers, cache_strides = cache_arguments(cache, scales)
    launch(
        _rotate_and_cache_kernel,
        (num_tokens, triton.cdiv(num_heads, block_heads)),
        qkv, cos, sin, query_scale, slots, query, *cache_pointers,
        qkv.stride(0), *cache_strides,
        NUM_HEADS=num_heads, HEAD_DIM=head_dim, HALF=cos.shape[1], IS_INT8=scales is not None,
        BLOCK_HEADS=block_heads, BLOCK_DIM=next_power_of_2(head_dim), num_warps=4,
    )  # fmt: skip
    return query
