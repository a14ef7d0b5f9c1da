"""Attention over the paged cache on a CPU with plain torch operations, sequence by sequence.

What decides its shape was measured on a 2-core AVX-512 machine:
- for one query row, copying a run of bf16 keys to float32 and multiplying there takes three quarters of the time
  that torch's bf16 bmm takes on the cache in place, and is more exact;
- for a chunk, torch's flash kernel returns the log-sum-exp too, so parts of a context (cached prefix, own chunk,
  separate runs of blocks) are attended one by one and merged, with no mask and no gathered copy.
- int8 keys and values are not dequantised for a decode: their scales multiply scores and probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from model.backends.cpu.decode_attention import DecodePlan, decode_attention_code
from model.execution.forward_batch import ForwardBatch, SequenceSpan
from model.execution.kv_cache import KVCache, quantize

# A decode reads its context in pieces of at most this many tokens; shorter ones cost more calls than they save.
_DECODE_RUN_TOKENS = 1024


class _Run(NamedTuple):
    """Views of one layer's cache over slots that lie next to each other.

    Attributes:
        keys: [num_heads, run_tokens, head_dim].
        values: the same shape.
        key_scales: [num_heads, run_tokens] of int8 keys, else None.
        value_scales: likewise.
    """

    keys: torch.Tensor
    values: torch.Tensor
    key_scales: torch.Tensor | None
    value_scales: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class _SequencePlan:
    """One sequence of a step: its rows, and views of its cached keys and values in every layer.

    Attributes:
        first_row: its rows in the batch are `first_row` up to `first_row + num_tokens`.
        num_tokens: new ones.
        runs: for each run of consecutive blocks, and there for each layer. For a decode they cover the new token too;
            for a chunk only what was cached before it.
    """

    first_row: int
    num_tokens: int
    runs: list[list[_Run]]


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """What all layers of a step share.

    Attributes:
        sequences: in row order.
        layers: each layer's cache, [2, num_heads, num_slots, head_dim].
        scales: each layer's scales, [2, num_heads, num_slots] float32, or None.
        cos: [T, 2, 1, head_dim] float32, for queries (scaled) and keys; 1 where nothing is rotated.
        sin: the same shape, the sign of the halves layout in it; 0 where nothing is rotated.
        decodes: the sequences of one new token, where a kernel of our own serves them; they are not in `sequences`.
    """

    sequences: list[_SequencePlan]
    layers: tuple[torch.Tensor, ...]
    scales: tuple[torch.Tensor, ...] | None
    cos: torch.Tensor
    sin: torch.Tensor
    decodes: DecodePlan | None


def plan_attention(batch: ForwardBatch, cache: KVCache, *, own_kernels: bool = True) -> AttentionPlan:
    """Works out, once a step, what every layer needs.

    Args:
        batch: the step.
        cache: keys and values.
        own_kernels: whether a kernel of ours may attend the decodes.
    """
    sequences = []
    row = 0
    code = decode_attention_code(cache) if own_kernels else None
    decodes: list[SequenceSpan] = []
    decode_rows: list[int] = []
    for span in batch.spans:
        if span.num_tokens == 1 and code is not None:
            decodes.append(span)
            decode_rows.append(row)
            row += 1
            continue
        if span.num_tokens == 1:
            ranges = _split(slot_runs(span, span.context_len, batch.block_size), _DECODE_RUN_TOKENS)
        else:
            ranges = slot_runs(span, span.start, batch.block_size)
        runs = [_views(cache, low, high) for low, high in ranges]
        sequences.append(_SequencePlan(row, span.num_tokens, runs))
        row += span.num_tokens
    scales = None if cache.scales is None else cache.scales.unbind(0)
    decode_plan = None
    if code is not None and decodes:
        decode_plan = DecodePlan(code, decodes, decode_rows, cache, batch.block_size)
    cos, sin = rotation(batch, cache.data.shape[-1])
    return AttentionPlan(sequences, cache.data.unbind(0), scales, cos, sin, decode_plan)


def scratch_for(cache: KVCache, scratch: torch.Tensor) -> torch.Tensor:
    """Room for one run's keys or values as float32: `scratch` if it is enough, else more."""
    data = cache.data
    num_elements = 0 if data.dtype == torch.float32 else data.shape[2] * _DECODE_RUN_TOKENS * data.shape[4]
    if scratch.numel() >= num_elements:
        return scratch
    return torch.empty(num_elements, dtype=torch.float32, device=data.device)


def attention(
    qkv: torch.Tensor, layer: int, batch: ForwardBatch, plan: AttentionPlan, scratch: torch.Tensor
) -> torch.Tensor:
    """See `Backend.attention`; `scratch` is of `scratch_for`."""
    cache = plan.layers[layer]
    _, num_heads, _, head_dim = cache.shape
    num_tokens = qkv.shape[0]
    qkv = qkv.view(num_tokens, 3, num_heads, head_dim)
    scales = None if plan.scales is None else plan.scales[layer]
    rotated = rotate_and_cache(qkv, cache, scales, batch, plan.cos, plan.sin)
    out = torch.empty(num_tokens, num_heads, head_dim, dtype=torch.float32, device=qkv.device)
    if plan.decodes is not None:
        plan.decodes.attend(rotated[:, 0], layer, out)
    for sequence in plan.sequences:
        first = sequence.first_row
        runs = [run[layer] for run in sequence.runs]
        if sequence.num_tokens == 1:
            _attend_one(rotated[first, 0, :, None], runs, out[first, :, None], scratch)
        else:
            rows = slice(first, first + sequence.num_tokens)
            q, k, v = qkv[rows].unbind(1)
            _attend_chunk(q, k, v, runs, out[rows])
    return out.to(qkv.dtype).view(num_tokens, num_heads * head_dim)


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
        cos: see `rotation`.
        sin: likewise.

    Returns:
        queries and keys [T, 2, num_heads, head_dim] float32.
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
    """What queries and keys of a step are multiplied with, in the halves layout.

    Args:
        batch: `cos` and `sin` of [T, rotary_dim / 2], and `query_scale`.
        head_dim: of the cache; dims past `rotary_dim` are not rotated, but queries are scaled.

    Returns:
        cos and signed sin, both [T, 2, 1, head_dim] float32; index 0 of the second dimension is for queries.
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
        cos: see `rotation`.
        sin: likewise.
        rotary_dim: how many of the dims are rotated.

    Returns:
        [T, 2, num_heads, head_dim] float32.
    """
    half = rotary_dim // 2
    x = x.float()
    swapped = torch.cat((x[..., half:rotary_dim], x[..., :half], x[..., rotary_dim:]), -1)
    return torch.mul(x, cos).addcmul_(swapped, sin)


def slot_runs(span: SequenceSpan, num_positions: int, block_size: int) -> list[tuple[int, int]]:
    """The slots of a sequence's first positions, as few ranges as its block numbers allow.

    Args:
        span: whose block table.
        num_positions: how many positions to cover.
        block_size: tokens in a block.

    Returns:
        (first slot, end slot) pairs in position order; empty when there is nothing to cover.
    """
    if num_positions <= 0:
        return []
    table = span.block_table
    num_blocks = -(-num_positions // block_size)
    runs = []
    first = previous = table[0]
    for block in table[1:num_blocks]:
        if block != previous + 1:
            runs.append((first * block_size, (previous + 1) * block_size))
            first = block
        previous = block
    unused = num_blocks * block_size - num_positions
    runs.append((first * block_size, (previous + 1) * block_size - unused))
    return runs


def _split(ranges: list[tuple[int, int]], max_tokens: int) -> list[tuple[int, int]]:
    """Cuts ranges of slots into pieces of at most `max_tokens`."""
    return [(start, min(start + max_tokens, high)) for low, high in ranges for start in range(low, high, max_tokens)]


def _views(cache: KVCache, low: int, high: int) -> list[_Run]:
    """Each layer's run of slots."""
    keys, values = cache.data[:, :, :, low:high].unbind(1)
    pairs = zip(keys.unbind(0), values.unbind(0), strict=True)
    if cache.scales is None:
        return [_Run(k, v, None, None) for k, v in pairs]
    key_scales, value_scales = cache.scales[:, :, :, low:high].unbind(1)
    scales = zip(key_scales.unbind(0), value_scales.unbind(0), strict=True)
    return [_Run(*pair, *scale) for pair, scale in zip(pairs, scales, strict=True)]


def _attend_one(query: torch.Tensor, runs: list[_Run], out: torch.Tensor, scratch: torch.Tensor) -> None:
    """One query row over cached keys, its own included; scores, softmax and sums in float32.

    Args:
        query: [num_heads, 1, head_dim] float32, scaled.
        runs: of at most `_DECODE_RUN_TOKENS` tokens each.
        out: [num_heads, 1, head_dim] float32, written.
        scratch: float32, room for one run's keys.
    """
    parts = []
    for run in runs:
        scores = torch.bmm(query, _as_float32(run.keys, scratch).transpose(1, 2))
        parts.append(scores if run.key_scales is None else scores.mul_(run.key_scales[:, None]))
    probs = torch.softmax(parts[0] if len(parts) == 1 else torch.cat(parts, dim=2), -1)
    first = 0
    for run in runs:
        end = first + run.values.shape[1]
        share = probs if len(runs) == 1 else probs[:, :, first:end]
        if run.value_scales is not None:
            share = share * run.value_scales[:, None]
        values = _as_float32(run.values, scratch)
        if first:
            out += torch.bmm(share, values)
        else:
            torch.bmm(share, values, out=out)
        first = end


def _as_float32(data: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
    """The tensor itself if it is float32, else a float32 copy in the scratch space."""
    if data.dtype == torch.float32:
        return data
    return scratch[: data.numel()].view(data.shape).copy_(data)


def _attend_chunk(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, runs: list[_Run], out: torch.Tensor) -> None:
    """A chunk's queries over its own keys (causal) and over the keys cached before it.

    Args:
        q: [num_tokens, num_heads, head_dim], scaled.
        k: the same shape.
        v: the same shape.
        runs: what is cached; may be empty.
        out: [num_tokens, num_heads, head_dim] float32, written.
    """
    query = q.transpose(0, 1)[None]
    total, log_total = _flash(query, k.transpose(0, 1)[None], v.transpose(0, 1)[None], is_causal=True)
    if runs:
        total = total.float()
        for run in runs:
            keys, values = _expand(run.keys, run.key_scales, q.dtype), _expand(run.values, run.value_scales, q.dtype)
            part, log_part = _flash(query, keys[None], values[None], is_causal=False)
            merged = torch.logaddexp(log_total, log_part)
            total = total * (log_total - merged).exp()[..., None] + part.float() * (log_part - merged).exp()[..., None]
            log_total = merged
    out.copy_(total[0].transpose(0, 1))


def _expand(data: torch.Tensor, scales: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Cached keys or values in the activations' type."""
    if scales is None:
        return data.to(dtype)
    return (data.float() * scales[..., None]).to(dtype)


def _flash(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, is_causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of [1, num_heads, T, head_dim] with scale 1, and the log-sum-exp [1, num_heads, T] float32."""
    out, log_sum_exp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, keys, values, 0.0, is_causal, attn_mask=None, scale=1.0
    )
    return out, log_sum_exp
