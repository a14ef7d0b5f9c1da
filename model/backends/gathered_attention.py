"""Attention over the paged cache in few torch operations, for devices where a loop over sequences would cost most.

Keys and values are gathered into dense arrays, sequences of like length together, and torch's attention does the
rest. Gathering is a second pass over what is read; what it takes is bounded, by taking turns with sequences and heads.
"""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence

import torch
import torch.nn.functional as F

# Of gathered keys and values at a time; and of scores, where torch writes them out.
_GATHER_BYTES = 256 << 20
# Queries of a chunk at a time: what is masked grows with them.
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
    """Where the keys of sequences are.

    Args:
        table: [any], block numbers.
        starts: [B], where in it the blocks of a sequence begin.
        lengths: [B], its keys.
        width: the longest of them.
        block_size: tokens in a block.
        firsts: [B], the position of the first of its keys; None for 0.

    Returns:
        [B, width] int64; beyond its end a sequence's last slot is repeated, whose content is a number.
    """
    positions = torch.arange(width, device=table.device)[None].minimum((lengths[:, None] - 1).clamp_min(0))
    if firsts is not None:
        positions = positions + firsts[:, None]
    blocks = table[starts[:, None] + positions // block_size].to(torch.int64)
    return blocks * block_size + positions % block_size


def groups_of_like_length(lengths: AbstractSequence[int], data: torch.Tensor) -> list[list[int]]:
    """Splits sequences so that what a group gathers, each as long as its longest, stays within bounds.

    Args:
        lengths: of the sequences.
        data: one layer's cache, [2, num_heads, num_slots, head_dim].

    Returns:
        indexes of the sequences of each group.
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
        slots: [B, L] int64, of `slots_of`.
        lengths: [B], the keys of each; 0 gives zeros.

    Returns:
        [B, num_heads, head_dim], dtype of the query.
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
        slots: [start + n] int64, where the keys are; with a window they may begin where that of the first row does.
        start: position of the first row.
        window: how many of the last positions a row reads; 0 for all.

    Returns:
        [n, num_heads, head_dim], dtype of the query.
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
    """Of a gathered key and value of one head; int8 ones are expanded."""
    return 2 * data.shape[-1] * max(2, data.itemsize)


def _head_ranges(data: torch.Tensor, num_keys: int) -> list[slice]:
    num_heads = data.shape[1]
    step = max(1, min(num_heads, _GATHER_BYTES // max(1, num_keys * _key_bytes(data))))
    return [slice(low, min(low + step, num_heads)) for low in range(0, num_heads, step)]


def _rows_at_once(query: torch.Tensor, num_keys: int) -> int:
    """Rows of a chunk whose scores, twice in float32, stay within bounds; a fused kernel writes none.

    Args:
        query: of the chunk.
        num_keys: of all heads together.
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
    """Attention of [B, heads, n, head_dim] with scale 1; in float32 without a kernel that may round its products."""
    if query.dtype != torch.float32:
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=is_seen, scale=1.0)
    scores = torch.matmul(query, keys.transpose(-1, -2)).masked_fill_(~is_seen, float("-inf"))
    return torch.matmul(scores.softmax(-1), values)
