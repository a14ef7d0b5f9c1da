"""Attention over the paged cache in torch operations, where no kernel of our own serves.

A step is many small operations, so the keys of many sequences are gathered for few large ones (gathered_attention.py).
"""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from model.backends.gathered_attention import attend_chunk, attend_decodes, groups_of_like_length, slots_of
from model.execution.forward_batch import ForwardBatch
from model.execution.kv_cache import KVCache, quantize


class _Decodes(NamedTuple):
    """Sequences of one new token and of like length.

    Attributes:
        rows: [B] int64, their rows in the step.
        slots: [B, L] int64, the cache slots of their keys.
        lengths: [B] int64, how many keys each has.
    """

    rows: torch.Tensor
    slots: torch.Tensor
    lengths: torch.Tensor


class _Chunk(NamedTuple):
    """A sequence of several new tokens, from row `first_row` and position `start` on, and the slots that they read."""

    first_row: int
    num_rows: int
    start: int
    slots: torch.Tensor


class _Keys(NamedTuple):
    """The keys that layers of one window read: of groups of sequences that decode, and of the others."""

    decodes: list[_Decodes]
    chunks: list[_Chunk]


@dataclass(frozen=True, slots=True)
class GatheredPlan:
    """What all layers of a step share.

    Attributes:
        cache: keys and values.
        cos: see `rotation`, likewise `sin`.
        keys: the keys to read by window; window 0 reads all.
    """

    cache: KVCache
    cos: torch.Tensor
    sin: torch.Tensor
    keys: dict[int, _Keys]


def plan_attention(batch: ForwardBatch, cache: KVCache) -> GatheredPlan:
    """Works out, once a step, what every layer needs.

    One copy brings all numbers to the device; slots are worked out there.
    """
    device = cache.data.device
    table: list[int] = []
    decodes: list[tuple[int, int, int]] = []  # row, keys, where its blocks begin
    chunks: list[tuple[int, int, int, int]] = []  # row, rows, position, where its blocks begin
    row = 0
    for span in batch.spans:
        if span.num_tokens == 1:
            decodes.append((row, span.context_len, len(table)))
        else:
            chunks.append((row, span.num_tokens, span.start, len(table)))
        table += span.block_table[: -(-span.context_len // cache.block_size)]
        row += span.num_tokens
    groups = groups_of_like_length([length for _, length, _ in decodes], cache.data[0])
    ordered = [decodes[index] for group in groups for index in group]
    numbers = [n for column in zip(*ordered, strict=True) for n in column] + table
    on_device = torch.tensor(numbers, dtype=torch.int64).to(device, non_blocking=True)
    rows, lengths, starts = on_device[: 3 * len(ordered)].view(3, -1)
    places = on_device[3 * len(ordered) :]
    cos, sin = rotation(batch, cache.data.shape[-1])
    known_lengths = [length for _, length, _ in ordered]
    keys = {
        window: _Keys(
            _groups(groups, known_lengths, rows, lengths, starts, places, cache, window),
            [_Chunk(*chunk[:3], _chunk_slots(chunk, places, cache, window)) for chunk in chunks],
        )
        for window in set(cache.windows) or {0}
    }
    return GatheredPlan(cache, cos, sin, keys)


def _groups(
    groups: AbstractSequence[AbstractSequence[int]],
    known_lengths: list[int],
    rows: torch.Tensor,
    lengths: torch.Tensor,
    starts: torch.Tensor,
    table: torch.Tensor,
    cache: KVCache,
    window: int,
) -> list[_Decodes]:
    result = []
    low = 0
    for group in groups:
        part = slice(low, low + len(group))
        own, width, firsts = lengths[part], max(known_lengths[part]), None
        if window:
            firsts = (own - window).clamp_min(0)
            own, width = own - firsts, min(width, window)
        slots = slots_of(table, starts[part], own, width, cache.block_size, firsts)
        result.append(_Decodes(rows[part], slots, own))
        low += len(group)
    return result


def _chunk_slots(chunk: tuple[int, int, int, int], table: torch.Tensor, cache: KVCache, window: int) -> torch.Tensor:
    _, num_rows, position, start = chunk
    first = max(0, position + 1 - window) if window else 0
    positions = torch.arange(first, position + num_rows, device=table.device)
    return table[start + positions // cache.block_size] * cache.block_size + positions % cache.block_size


def attention(qkv: torch.Tensor, layer: int, batch: ForwardBatch, plan: GatheredPlan) -> torch.Tensor:
    """See `Backend.attention`."""
    data = plan.cache.data[layer]
    scales = None if plan.cache.scales is None else plan.cache.scales[layer]
    rotated = rotate_and_cache(qkv, data, scales, batch, plan.cos, plan.sin)
    query = rotated[:, 0].to(qkv.dtype)
    out = torch.empty_like(query)
    window = plan.cache.window_of(layer)
    for rows, slots, lengths in plan.keys[window].decodes:
        out[rows] = attend_decodes(query[rows], data, scales, slots, lengths)
    for first_row, num_rows, start, slots in plan.keys[window].chunks:
        chunk = slice(first_row, first_row + num_rows)
        out[chunk] = attend_chunk(query[chunk], data, scales, slots, start, window)
    return out.view(len(out), -1)


def rotate_and_cache(
    qkv: torch.Tensor,
    data: torch.Tensor,
    scales: torch.Tensor | None,
    batch: ForwardBatch,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    """Rotates queries and keys, and writes the new keys and values to their slots.

    Args:
        qkv: [T, 3 * num_heads * head_dim]; its queries and keys become the rotated ones, rounded.
        data: [2, num_heads, num_slots, head_dim], one layer's cache.
        scales: [2, num_heads, num_slots] float32 beside int8 data, else None.
        batch: the step.
        cos: see `rotation`, likewise `sin`.
        sin: see `cos`.

    Returns:
        Queries and keys [T, 2, num_heads, head_dim] float32.
    """
    _, num_heads, _, head_dim = data.shape
    qkv = qkv.view(len(qkv), 3, num_heads, head_dim)
    rotated = rotate(qkv[:, :2], cos, sin, 2 * batch.cos.shape[-1])
    qkv[:, :2] = rotated  # rounded to the activations' type; the linear's result is nobody else's
    new = qkv[:, 1:].permute(1, 2, 0, 3)
    if scales is None:
        data.index_copy_(2, batch.slots, new.to(data.dtype))
    else:
        values, factors = quantize(new)
        data.index_copy_(2, batch.slots, values)
        scales.index_copy_(2, batch.slots, factors)
    return rotated


def rotation(batch: ForwardBatch, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors of a step's queries and keys: dim i is rotated with dim i + rotary_dim / 2.

    Dims past `rotary_dim` are not rotated, but those of queries are scaled.

    Returns:
        Cosines and signed sines, both [T, 2, 1, head_dim] float32; index 0 of the second dimension is for queries.
    """
    num_tokens, half = batch.cos.shape
    cos = batch.cos.new_ones(num_tokens, 2, 1, head_dim)
    sin = batch.cos.new_zeros(num_tokens, 2, 1, head_dim)
    cos[..., :half] = cos[..., half : 2 * half] = batch.cos[:, None, None]
    sin[..., :half], sin[..., half : 2 * half] = -batch.sin[:, None, None], batch.sin[:, None, None]
    scale = batch.query_scale[:, None, None]
    cos[:, 0] *= scale
    sin[:, 0] *= scale
    return cos, sin


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, rotary_dim: int) -> torch.Tensor:
    """Rotary embedding in float32, queries and keys together.

    Args:
        x: [T, 2, num_heads, head_dim].
        cos: see `rotation`, likewise `sin`.
        sin: see `cos`.
        rotary_dim: how many of the dims are rotated.

    Returns:
        [T, 2, num_heads, head_dim] float32.
    """
    half = rotary_dim // 2
    x = x.float()
    swapped = torch.cat((x[..., half:rotary_dim], x[..., :half], x[..., rotary_dim:]), -1)
    return torch.mul(x, cos).addcmul_(swapped, sin)
