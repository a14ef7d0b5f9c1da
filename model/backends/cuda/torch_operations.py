"""The work of each Triton kernel in torch: kernels are checked against it, and it serves where a kernel fails.

Signatures are the kernels' own. Attention reads lengths on the host, so it cannot be part of a CUDA graph.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from model.backends.cuda.gptq_layout import PackedWeight
from model.backends.cuda.kernels.attention.decode_attention import DecodeRows
from model.backends.cuda.kernels.attention.prefill_attention import PrefillTiles
from model.backends.cuda.kernels.decode_inputs import AngleTables, DecodeInputs
from model.backends.gathered_attention import attend_chunk, attend_decodes, groups_of_like_length, slots_of
from model.execution.kv_cache import quantize

# Weights expanded at a time.
_COLUMNS_PER_PASS = 1024


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, epsilon: float, residual: torch.Tensor | None = None
) -> torch.Tensor:
    """See `kernels.norm.rms_norm`."""
    if residual is not None:
        x = residual.add_(x)
    wide = x.float()
    factor = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (wide * factor).to(weight.dtype) * weight


def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """See `kernels.silu_mul.silu_mul`."""
    return (F.silu(gate.float()) * up.float()).to(gate.dtype)


def rotate_and_cache(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    query_scale: torch.Tensor,
    slots: torch.Tensor,
    cache: torch.Tensor,
    scales: torch.Tensor | None,
) -> torch.Tensor:
    """See `kernels.attention.rotary.rotate_and_cache`; waits for nothing, so that a graph may hold it."""
    _, num_heads, _, head_dim = cache.shape
    q, k, v = qkv.reshape(len(qkv), 3, num_heads, head_dim).float().unbind(1)
    cos, sin = cos[:, None], sin[:, None]
    query = (_rotate(q, cos, sin) * query_scale[:, None, None]).to(qkv.dtype)
    new = torch.stack([_rotate(k, cos, sin), v]).transpose(1, 2)
    # A row without a slot writes what the first row that has one writes; if none has, slot 0 keeps what it holds.
    is_used = slots >= 0
    first = is_used.to(torch.uint8).argmax()
    sources = torch.where(is_used, torch.arange(len(slots), device=slots.device), first)
    places = slots[sources].clamp_min(0)
    new = new[:, :, sources]
    if scales is None:
        _write(cache, places, new.to(cache.dtype), is_used.any())
    else:
        integers, factors = quantize(new)
        _write(cache, places, integers, is_used.any())
        _write(scales, places, factors, is_used.any())
    return query


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = cos.shape[-1]
    x1, x2, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest], -1)


def _write(target: torch.Tensor, places: torch.Tensor, values: torch.Tensor, is_wanted: torch.Tensor) -> None:
    target[:, :, places] = torch.where(is_wanted, values, target[:, :, places])


def decode_attention(
    query: torch.Tensor,
    cache: torch.Tensor,
    scales: torch.Tensor | None,
    decodes: DecodeRows,
    out: torch.Tensor,
    *,
    block_size: int,
    num_splits: int,
    window: int = 0,
) -> None:
    """See `kernels.attention.decode_attention.decode_attention`; `num_splits` is of no use here."""
    keys = decodes.lengths.clamp_max(window) if window else decodes.lengths
    lengths = keys.tolist()
    for group in groups_of_like_length(lengths, cache):
        chosen = torch.tensor(group, device=query.device)
        rows, own = decodes.rows[chosen].long(), keys[chosen]
        firsts = decodes.lengths[chosen] - own if window else None
        width = max(1, lengths[group[0]])
        slots = slots_of(decodes.table, decodes.table_starts[chosen], own, width, block_size, firsts)
        attended = attend_decodes(query[rows], cache, scales, slots, own)
        out[rows[rows >= 0]] = attended[rows >= 0]


def prefill_attention(
    query: torch.Tensor,
    cache: torch.Tensor,
    scales: torch.Tensor | None,
    tiles: PrefillTiles,
    out: torch.Tensor,
    *,
    block_size: int,
    window: int = 0,
) -> None:
    """See `kernels.attention.prefill_attention.prefill_attention`."""
    for first_row, position, num_rows, table_start in tiles.records.tolist():
        first = max(0, position + 1 - window) if window else 0
        num_keys = position + num_rows - first
        numbers = torch.tensor([[table_start], [num_keys], [first]], device=query.device)
        slots = slots_of(tiles.table, numbers[0], numbers[1], num_keys, block_size, numbers[2])[0]
        rows = slice(first_row, first_row + num_rows)
        out[rows] = attend_chunk(query[rows], cache, scales, slots, position, window)


def make_decode_inputs(
    fields: torch.Tensor, table: torch.Tensor, last_ids: torch.Tensor, angles: AngleTables, block_size: int
) -> DecodeInputs:
    """See `kernels.decode_inputs.make_decode_inputs`."""
    token, position, alpha, start = fields.long().unbind(1)
    is_used = position >= 0
    place = position.clamp_min(0)
    sampled = last_ids[torch.where(token < 0, -1 - token, 0)]
    blocks = table[torch.where(is_used, start + place // block_size, 0)].long()
    return DecodeInputs(
        token_ids=torch.where(is_used, torch.where(token < 0, sampled, token), 0),
        slots=torch.where(is_used, blocks * block_size + place % block_size, -1),
        lengths=(position + 1).to(torch.int32),
        table_starts=start.to(torch.int32),
        cos=angles.cos[alpha, place],
        sin=angles.sin[alpha, place],
        query_scale=angles.query_scale[place],
    )


def row_matmul(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """See `kernels.matmul.row_matmul.row_matmul`; only a reference, for the library's product serves instead."""
    out = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    return out.to(dtype or x.dtype)


def add_low_rank(
    out: torch.Tensor, x: torch.Tensor, slots: torch.Tensor, a: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    """See `kernels.matmul.low_rank.add_low_rank`; one adapter after another."""
    rank = b.shape[2]
    num_parts = a.shape[1] // rank
    for slot in sorted(set(slots.tolist())):
        if slot < 0:
            continue
        rows = (slots == slot).nonzero()[:, 0]
        hidden = F.linear(x[rows].float(), a[slot].float()).view(-1, num_parts, rank)
        factors = b[slot].float().view(num_parts, -1, rank)
        added = torch.einsum("tpr,pnr->tpn", hidden, factors).reshape(len(rows), -1)
        out[rows] = (out[rows].float() + added).to(out.dtype)
    return out


def gptq_matmul(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    """See `kernels.matmul.gptq_matmul.gptq_matmul`."""
    if weight.permutation is not None:
        x = x.index_select(1, weight.permutation)
    out = torch.empty((len(x), weight.out_features), dtype=x.dtype, device=x.device)
    for low in range(0, weight.out_features, _COLUMNS_PER_PASS):
        columns = slice(low, low + _COLUMNS_PER_PASS)
        out[:, columns] = torch.mm(x, _expand(weight, columns).t().to(x.dtype))
    out = out if bias is None else out + bias
    return out.float() if weight.wide_results else out


def _expand(weight: PackedWeight, outputs: slice) -> torch.Tensor:
    """Some outputs of a weight, [outputs, K] float32, in the weight's own order of inputs."""
    per_word, middle = weight.values_per_word, 1 << (weight.bits - 1)
    words = weight.words[outputs]
    words = words.view(len(words), -1, 1, weight.rows_per_tile, 1)  # output, tile, place, word, half
    shifts = torch.arange(per_word, dtype=torch.int32, device=words.device) * weight.bits
    shifts = shifts.view(2, per_word // 2, 1).permute(1, 2, 0)
    values = (words >> shifts) & ((1 << weight.bits) - 1)
    values = values.flatten(1)[:, : weight.in_features]
    groups = torch.arange(weight.in_features, device=words.device) // weight.group_size
    zeros = middle if weight.zeros is None else weight.zeros[:, outputs][groups].t().to(torch.int32)
    levels = (values - zeros).float() if weight.codes is None else weight.codes[values.long()]
    expanded: torch.Tensor = levels * weight.scales[:, outputs][groups].t().float()
    return expanded if weight.offsets is None else expanded + weight.offsets[:, outputs][groups].t()
