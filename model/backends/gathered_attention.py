"""Attention over the paged cache in few torch operations, for devices where a loop over sequences would cost most.

Keys and values are gathered into dense arrays, sequences of like length together, and torch's attention does the
rest. Gathering reads everything twice; its memory is bounded by taking turns with sequences and heads.
"""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence

import torch
import torch.nn.functional as F

# The most bytes of gathered keys and values at a time; and of scores, where torch writes them out.
_GATHER_BYTES = 256 << 20
# How many queries of a chunk are taken at a time: the mask grows with them.
_QUERY_ROWS = 1024
_MIN_QUERY_ROWS = 16


def slots_of(
    table: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    width: int,
    block_size: int,
    firsts: torch.Tensor | None = None,
) -> torch.Tensor:
    """The cache slots of the keys of sequences.

    Args:
        table: block numbers of all sequences, one dimension.
        starts: [B], where in the table the blocks of each sequence begin.
        lengths: [B], how many keys each sequence has.
        width: the largest of the lengths.
        block_size: tokens in a block.
        firsts: [B], the position of each sequence's first key; None for 0.

    Returns:
        [B, width] int64; beyond its end a sequence's last slot is repeated, whose content is no NaN.
    """
    positions = torch.arange(width, device=table.device)[None].minimum((lengths[:, None] - 1).clamp_min(0))
    if firsts is not None:
        positions = positions + firsts[:, None]
    blocks = table[starts[:, None] + positions // block_size].to(torch.int64)
    return blocks * block_size + positions % block_size


def groups_of_like_length(lengths: AbstractSequence[int], data: torch.Tensor) -> list[list[int]]:
    """Splits sequences so that what a group gathers, each as long as its longest, stays within bounds.

    Args:
        lengths: how many keys each sequence has.
        data: one layer's cache, [2, num_heads, num_slots, head_dim].

    Returns:
        The indexes of the sequences of each group.
    """
    key_bytes = _key_bytes(data) * data.shape[1]
    groups: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and (len(groups[-1]) + 1) * longest * key_bytes <= _GATHER_BYTES and 2 * lengths[index] >= longest:
            groups[-1].append(index)
        else:
            groups.append([index])
            longest = lengths[index]
    return groups


def attend_decodes(
    query: torch.Tensor, data: torch.Tensor, scales: torch.Tensor | None, slots: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """One query row a sequence.

    Args:
        query: [B, num_heads, head_dim], rotated and scaled.
        data: [2, num_heads, num_slots, head_dim], one layer's keys and values.
        scales: [2, num_heads, num_slots] float32 beside int8 data, else None.
        slots: [B, L] int64, from `slots_of`.
        lengths: [B], how many keys each has; 0 gives zeros.

    Returns:
        [B, num_heads, head_dim] in the query's dtype.
    """
    is_key = (torch.arange(slots.shape[1], device=slots.device)[None] < lengths[:, None].clamp_min(1))[:, None, None]
    out = torch.empty_like(query)
    for heads in _head_ranges(data, slots.numel()):
        keys, values = _gather(data, scales, heads, slots, query.dtype)
        rows = query[:, heads, None]
        out[:, heads] = _attend(rows, keys.transpose(0, 1), values.transpose(0, 1), is_key)[:, :, 0]
    return torch.where((lengths > 0)[:, None, None], out, 0)


def attend_chunk(
    query: torch.Tensor,
    data: torch.Tensor,
    scales: torch.Tensor | None,
    slots: torch.Tensor,
    start: int,
    window: int = 0,
) -> torch.Tensor:
    """The rows of one chunk, causally.

    Args:
        query: [n, num_heads, head_dim], rotated and scaled.
        data: [2, num_heads, num_slots, head_dim], one layer's keys and values, the chunk's own included.
        scales: [2, num_heads, num_slots] float32 beside int8 data, else None.
        slots: [start + n] int64, the slots of the keys; with a window they may begin where the first row's does.
        start: position of the first row.
        window: how many of the last positions a row reads; 0 for all.

    Returns:
        [n, num_heads, head_dim] in the query's dtype.
    """
    out = torch.empty_like(query)
    num_passed = start + len(query) - len(slots)
    positions = torch.arange(num_passed, start + len(query), device=slots.device)
    for heads in _head_ranges(data, len(slots)):
        keys, values = _gather(data, scales, heads, slots, query.dtype)
        step = _rows_at_once(query, len(slots) * keys.shape[0])
        for low in range(0, len(query), step):
            rows = query[low : low + step, heads].transpose(0, 1)
            first = start + low - num_passed
            end = first + rows.shape[1]
            seen = slice(max(0, first + 1 - window) if window else 0, end)
            own = positions[first:end, None]
            is_seen = positions[None, seen] <= own
            if window:
                is_seen &= positions[None, seen] > own - window
            part = _attend(rows[None], keys[None, :, seen], values[None, :, seen], is_seen)
            out[low : low + rows.shape[1], heads] = part[0].transpose(0, 1)
    return out


def _key_bytes(data: torch.Tensor) -> int:
    """Bytes of a gathered key and value of one head; those in int8 are expanded."""
    return 2 * data.shape[-1] * max(2, data.itemsize)


def _head_ranges(data: torch.Tensor, num_keys: int) -> list[slice]:
    num_heads = data.shape[1]
    step = max(1, min(num_heads, _GATHER_BYTES // max(1, num_keys * _key_bytes(data))))
    return [slice(low, min(low + step, num_heads)) for low in range(0, num_heads, step)]


def _rows_at_once(query: torch.Tensor, num_keys: int) -> int:
    """How many rows of a chunk are taken at a time, so that their scores, twice in float32, stay within bounds.

    A fused kernel writes no scores.

    Args:
        query: the chunk's queries.
        num_keys: how many keys there are, those of each head counted.
    """
    if query.device.type == "cuda" and query.dtype != torch.float32:
        return _QUERY_ROWS
    return max(_MIN_QUERY_ROWS, min(_QUERY_ROWS, _GATHER_BYTES // (8 * max(1, num_keys))))


def _gather(
    data: torch.Tensor, scales: torch.Tensor | None, heads: slice, slots: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of some heads, each [heads, *slots.shape, head_dim]."""
    found = [part[heads][:, slots] for part in data]
    if scales is not None:
        parts = zip(found, scales, strict=True)
        found = [part.float() * scale[heads][:, slots, None] for part, scale in parts]
    keys, values = (part.to(dtype) for part in found)
    return keys, values


def _attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, is_seen: torch.Tensor) -> torch.Tensor:
    """Attention of [B, heads, n, head_dim] with scale 1; in float32 by products: a fused kernel may round them."""
    if query.dtype != torch.float32:
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=is_seen, scale=1.0)
    scores = torch.matmul(query, keys.transpose(-1, -2)).masked_fill_(~is_seen, float("-inf"))
    return torch.matmul(scores.softmax(-1), values)
