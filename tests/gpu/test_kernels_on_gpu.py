"""Kernels in the sizes of the published checkpoints. tests/model/backends/cuda runs small ones here too."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from model.backends.cuda.gptq_layout import pack, pack_grouped
from model.backends.cuda.kernels.attention import decode_attention as decode
from model.backends.cuda.kernels.attention import prefill_attention as prefill
from model.backends.cuda.kernels.matmul import gptq_matmul as gptq
from model.backends.cuda.kernels.sampling.sample_rows import RowFilters, sample_rows
from model.backends.weights import GPTQTensors, GroupedWeight
from model.quantization.at_load import quantize_at_load
from model.quantization.gptq import dequantize
from model.quantization.grouped import expand

DEVICE = torch.device("cuda")


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.double(), expected.double()
    assert not found.isnan().any()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("num_rows", [1, 7, 16, 32, 33, 129, 256, 257, 1024])
@pytest.mark.parametrize(("in_features", "out_features"), [(4096, 11008), (11008, 4096), (5504, 2048), (8192, 24576)])
@pytest.mark.parametrize(("bits", "group_size"), [(4, 128), (8, 128), (4, 32)])
def test_gptq_products(num_rows: int, in_features: int, out_features: int, bits: int, group_size: int) -> None:
    generator = torch.Generator(DEVICE).manual_seed(0)
    per_word = 32 // bits
    limit = (1 << 31) - 1
    num_groups = in_features // group_size

    def words(*shape: int) -> torch.Tensor:
        return torch.randint(-limit, limit, shape, dtype=torch.int32, device=DEVICE, generator=generator)

    qweight, qzeros = words(in_features // per_word, out_features), words(num_groups, out_features // per_word)
    scales = torch.rand(num_groups, out_features, device=DEVICE, generator=generator).half() / 100
    groups = torch.arange(in_features, device=DEVICE) // group_size
    stored = GPTQTensors(qweight, qzeros, scales, groups, bits)
    packed = pack(stored)
    assert packed is not None
    x = torch.randn(num_rows, in_features, device=DEVICE, generator=generator).bfloat16()
    expected = x.float() @ dequantize(stored, torch.float32).t()
    assert relative_error(gptq.gptq_matmul(x, packed, None), expected) < 1e-2


@pytest.mark.parametrize("num_rows", [1, 16, 20, 129, 257])
@pytest.mark.parametrize(("in_features", "out_features"), [(4096, 11008), (11008, 4096)])
@pytest.mark.parametrize("kind", ["nf4", "int4", "int8", "Q4_0", "Q4_K", "Q6_K"])
def test_grouped_products(num_rows: int, in_features: int, out_features: int, kind: str) -> None:
    generator = torch.Generator(DEVICE).manual_seed(0)
    weight: GroupedWeight | None
    if kind[0] == "Q":
        bits, group_size, zero, has_offsets = {
            "Q4_0": (4, 32, 8, False), "Q4_K": (4, 32, 0, True), "Q6_K": (8, 16, 128, False)
        }[kind]  # fmt: skip
        shape, size = (out_features, in_features), (out_features, in_features // group_size)
        values = torch.randint(0, 1 << bits, shape, dtype=torch.uint8, device=DEVICE, generator=generator)
        scales = torch.rand(size, device=DEVICE, generator=generator) / 100
        offsets = torch.randn(size, device=DEVICE, generator=generator) / 50 if has_offsets else None
        weight = GroupedWeight(values, scales, offsets, bits, zero)
    else:
        drawn = torch.randn(out_features, in_features, device=DEVICE, generator=generator)
        weight = quantize_at_load(drawn.bfloat16(), kind)
    assert weight is not None
    packed = pack_grouped(weight)
    assert packed is not None
    x = torch.randn(num_rows, in_features, device=DEVICE, generator=generator).bfloat16()
    assert relative_error(gptq.gptq_matmul(x, packed, None), x.float() @ expand(weight, torch.float32).t()) < 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("lengths", [[2048], [1, 700, 8192, 33] * 8], ids=["one", "many"])
def test_decode_attention(dtype: torch.dtype, head_dim: int, lengths: list[int]) -> None:
    num_heads, block_size = 8, 16
    counts = [-(-n // block_size) for n in lengths]
    num_blocks = sum(counts)
    table = torch.randperm(num_blocks, device=DEVICE).to(torch.int32)
    cache = torch.randn(2, num_heads, num_blocks * block_size, head_dim, device=DEVICE).to(dtype)
    query = (torch.randn(len(lengths), num_heads, head_dim, device=DEVICE) / math.sqrt(head_dim)).to(dtype)
    starts = [sum(counts[:i]) for i in range(len(counts))]
    numbers = [torch.tensor(x, dtype=torch.int32, device=DEVICE) for x in (range(len(lengths)), lengths, starts)]
    out = torch.full_like(query, math.nan)
    num_splits = decode.choose_num_splits(len(lengths), num_heads, max(lengths))
    rows = decode.DecodeRows(*numbers, table)  # type: ignore[call-arg]
    decode.decode_attention(
        query, cache, None, rows, out, block_size=block_size, num_splits=num_splits
    )
    for i, (length, start) in enumerate(zip(lengths, starts, strict=True)):
        blocks = table[start : start + counts[i]].long()
        slots = (blocks[:, None] * block_size + torch.arange(block_size, device=DEVICE)).flatten()[:length]
        keys, values = cache[:, :, slots].double()
        probs = torch.einsum("hd,hkd->hk", query[i].double(), keys).softmax(-1)
        expected = torch.einsum("hk,hkd->hd", probs, values)
        assert relative_error(out[i], expected) < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_prefill_attention(dtype: torch.dtype, head_dim: int) -> None:
    """A long chunk, one behind a cached prefix, and a short one."""
    num_heads, block_size = 4, 16
    chunks = [(0, 1500), (3000, 600), (10, 5)]
    lengths = [first + n for first, n in chunks]
    counts = [-(-n // block_size) for n in lengths]
    table = torch.randperm(sum(counts), device=DEVICE).to(torch.int32)
    cache = torch.randn(2, num_heads, sum(counts) * block_size, head_dim, device=DEVICE).to(dtype)
    num_rows = sum(n for _, n in chunks)
    query = (torch.randn(num_rows, num_heads, head_dim, device=DEVICE) / math.sqrt(head_dim)).to(dtype)
    block_rows = prefill.choose_block_rows(dtype, 1500)
    first_rows = [0, 1500, 2100]
    starts = [sum(counts[:i]) for i in range(3)]
    records = prefill.tile_records(
        [(row, first, n, start) for row, (first, n), start in zip(first_rows, chunks, starts, strict=True)], block_rows
    )
    tiles = prefill.PrefillTiles(torch.tensor(records, dtype=torch.int32, device=DEVICE), table, block_rows)
    out = torch.full_like(query, math.nan)
    prefill.prefill_attention(query, cache, None, tiles, out, block_size=block_size)
    for i, (row, (first, n)) in enumerate(zip(first_rows, chunks, strict=True)):
        blocks = table[starts[i] : starts[i] + counts[i]].long()
        slots = (blocks[:, None] * block_size + torch.arange(block_size, device=DEVICE)).flatten()[: lengths[i]]
        keys, values = cache[:, None, :, slots].double()
        seen = torch.arange(lengths[i], device=DEVICE) <= first + torch.arange(n, device=DEVICE)[:, None]
        expected = F.scaled_dot_product_attention(
            query[row : row + n].transpose(0, 1)[None].double(), keys, values, attn_mask=seen, scale=1.0
        )
        error = relative_error(out[row : row + n], expected[0].transpose(0, 1))
        assert error < (1e-5 if dtype == torch.float32 else 1e-2)


def test_a_cache_beyond_32_bit_offsets() -> None:
    """The last slot of the last head lies more than 2 ** 31 elements behind the first."""
    num_heads, head_dim, num_slots = 40, 128, 450_000
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("needs 12 GiB")
    cache = torch.zeros(2, num_heads, num_slots, head_dim, dtype=torch.bfloat16, device=DEVICE)
    assert cache[0].numel() > 1 << 31
    block = num_slots // 16 - 1
    cache[1, :, block * 16] = torch.arange(num_heads, device=DEVICE)[:, None].bfloat16()
    query = torch.randn(1, num_heads, head_dim, device=DEVICE).bfloat16()
    numbers = [torch.tensor([x], dtype=torch.int32, device=DEVICE) for x in (0, 1, 0)]
    table = torch.tensor([block], dtype=torch.int32, device=DEVICE)
    out = torch.empty_like(query)
    rows = decode.DecodeRows(*numbers, table)  # type: ignore[call-arg]
    decode.decode_attention(query, cache, None, rows, out, block_size=16, num_splits=1)
    assert torch.equal(out[0, :, 0].float(), torch.arange(num_heads, device=DEVICE).float())


@pytest.mark.parametrize("top_p", [1.0, 0.8, 0.3])
def test_sampling_of_a_whole_vocabulary(top_p: float) -> None:
    """Frequencies of many draws follow the filtered distribution."""
    logits = torch.randn(151936, device=DEVICE) * 3
    num_rows = 4000
    draws = torch.rand(num_rows, device=DEVICE)
    column = torch.ones(num_rows, device=DEVICE)
    filters = RowFilters(column, torch.zeros_like(column).int(), column * top_p, column * 0, draws)
    counts = torch.zeros_like(logits)
    for _ in range(5):
        rows = logits.expand(num_rows, -1).contiguous()
        ids, is_valid = sample_rows(rows, filters._replace(draws=torch.rand_like(draws)))
        assert is_valid.all()
        counts += torch.bincount(ids, minlength=len(counts))
    probs, order = logits.double().softmax(-1).sort(descending=True)
    probs[probs.cumsum(0) - probs >= top_p] = 0
    expected = torch.zeros_like(probs).scatter_(0, order, probs / probs.sum())
    assert (counts[expected == 0] == 0).all()
    likely = expected > 1e-3
    error = (counts[likely] / counts.sum() - expected[likely]).abs() / (expected[likely] / counts.sum()).sqrt()
    assert float(error.max()) < 6
