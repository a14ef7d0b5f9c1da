"""torch's operations for devices without kernels of ours: attention over gathered keys, and packed GPTQ products."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
import torch.nn.functional as F

from model.backends import gathered_attention, torch_quantized
from model.backends.gathered_attention import groups_of_like_length
from model.backends.torch_device_backend import TorchDeviceBackend
from model.backends.torch_quantized import TorchGPTQLinear, make_torch_gptq_linear
from model.backends.weights import GPTQTensors
from model.contract.sampling_params import SamplingParams
from model.quantization.gptq import dequantize
from model.sampling.sampling_row import SamplingRow
from model.sampling.torch_sampling import sample_tokens
from tests.support.quantized_tensors import pack_rows
from tests.support.random_attention import CONFIG, TOLERANCE, RandomSequence, deal_blocks, nan_cache, run_step

CPU = torch.device("cpu")


@pytest.mark.parametrize("seed", range(9))
def test_random_mixes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences advance by random chunks and decodes in random company; every third time memory is short."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    if seed % 3 == 0:
        monkeypatch.setattr(gathered_attention, "_GATHER_BYTES", 4000)
        monkeypatch.setattr(gathered_attention, "_MIN_QUERY_ROWS", 7)
    dtype = [torch.float32, torch.bfloat16, torch.float16][seed % 3 if seed < 3 else (seed + 1) % 3]
    config = dataclasses.replace(CONFIG, rotary_dim=rng.choice([16, 8]), seq_length=rng.choice([5, 20]))
    block_size = rng.choice([1, 4, 16])
    lengths = [rng.choice([1, 2, rng.randrange(1, 60)]) for _ in range(rng.randrange(1, 6))]
    num_blocks = sum(-(-n // block_size) for n in lengths) + 12
    cache = nan_cache(config, num_blocks, block_size, dtype)
    tables = deal_blocks(rng, lengths, block_size, num_blocks)
    sequences = [
        RandomSequence(config, length, rng.choice([1.0, 3.0]), table, dtype)
        for length, table in zip(lengths, tables, strict=True)
    ]
    backend = TorchDeviceBackend(CPU, has_bfloat16=True)
    while alive := [seq for seq in sequences if seq.num_done < seq.length]:
        chunks = [
            (seq, min(seq.length - seq.num_done, rng.choice([1, 1, 2, rng.randrange(1, 30)])))
            for seq in rng.sample(alive, rng.randrange(1, len(alive) + 1))
        ]
        run_step(backend, config, cache, chunks, TOLERANCE[dtype])


def test_scores_that_are_written_out_are_bounded() -> None:
    """64 heads of 32,768 keys in float32: 17 GB for 1,024 rows at once, twice as scores and as probabilities."""
    query = torch.empty(4096, 64, 128, device="meta")
    num_rows = gathered_attention._rows_at_once(query, 64 * 32_768)
    assert num_rows == 16
    assert gathered_attention._rows_at_once(query, 32 * 8192) == (256 << 20) // (8 * 32 * 8192)
    assert gathered_attention._rows_at_once(query, 100) == 1024


def test_groups_hold_like_lengths_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    data = torch.empty(2, 4, 100, 16, dtype=torch.float16)
    key_bytes = 2 * 4 * 16 * 2
    monkeypatch.setattr(gathered_attention, "_GATHER_BYTES", 300 * key_bytes)
    lengths = [3, 100, 90, 95, 50, 1, 700, 49]
    groups = groups_of_like_length(lengths, data)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        longest = max(lengths[i] for i in group)
        assert len(group) == 1 or len(group) * longest <= 300
        assert all(2 * lengths[i] >= longest for i in group)
    assert groups[:2] == [[6], [1, 3, 2]]
    assert groups_of_like_length([], data) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("bits", "group_size", "has_act_order", "scale_dtype"),
    [
        (4, 32, False, torch.float16),
        (4, 32, True, torch.float16),
        (8, 48, True, torch.float32),
        (4, 96, False, torch.bfloat16),
    ],
)
def test_gptq_products_are_those_of_the_expanded_weight(
    bits: int, group_size: int, has_act_order: bool, scale_dtype: torch.dtype, dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """To the bit, for the weight is rounded once either way; in one pass and in several."""
    torch.manual_seed(0)
    num_inputs, num_outputs = 96, 40
    num_groups = num_inputs // group_size
    groups = torch.arange(num_inputs) // group_size
    if has_act_order:
        groups = groups[torch.randperm(num_inputs)]
    stored = GPTQTensors(
        pack_rows(torch.randint(0, 1 << bits, (num_inputs, num_outputs)), bits),
        pack_rows(torch.randint(0, 1 << bits, (num_outputs, num_groups)), bits).t().contiguous(),
        (torch.rand(num_groups, num_outputs) / 50).to(scale_dtype),
        groups,
        bits,
    )
    weight = dequantize(stored, dtype)
    bias = torch.randn(num_outputs).to(dtype)
    x = torch.randn(3, num_inputs).to(dtype)
    made = make_torch_gptq_linear(stored, bias, dtype)
    assert made is not None
    linear, num_bytes = made
    assert num_bytes < num_inputs * num_outputs * (0.5 if bits == 4 else 1) + 3 * 8 * num_outputs * num_groups + 200
    order = torch.arange(num_inputs) if linear._order is None else linear._order
    assert torch.equal(linear._expand(slice(0, None)), weight[:, order])
    torch.testing.assert_close(linear(x), F.linear(x, weight, bias), rtol=2e-2, atol=2e-2)
    monkeypatch.setattr(torch_quantized, "_EXPANDED_BYTES", num_inputs * 2 * 7)
    parts = TorchGPTQLinear(stored, bias, dtype)(x)
    torch.testing.assert_close(parts, linear(x), rtol=2e-2, atol=2e-2)


def test_unequal_groups_are_left_to_the_caller() -> None:
    groups = torch.tensor([0] * 40 + [1] * 24)
    words, zeros = torch.zeros(8, 8, dtype=torch.int32), torch.zeros(2, 1, dtype=torch.int32)
    assert make_torch_gptq_linear(GPTQTensors(words, zeros, torch.ones(2, 8), groups, 4), None, torch.float16) is None


def test_devices_without_float64_draw_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = TorchDeviceBackend(torch.device("mps"), has_bfloat16=False)
    assert backend.sample_tokens is not None
    rows = [SamplingRow(0, SamplingParams(max_tokens=1, temperature=1.0, top_p=0.9), [1], 1, 5)]
    logits = torch.randn(1, 500)
    ids, is_valid = backend.sample_tokens(logits.clone(), rows)
    assert torch.equal(ids, sample_tokens(logits, rows)[0])
    assert is_valid.all()
