"""The reference backend's attention against plain float64 arithmetic, with everything a batch can mix."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from model.backends.torch_backend import TorchBackend
from model.execution.forward_batch import ForwardBatch, SequenceSpan
from tests.support.random_attention import (
    CONFIG,
    CPU,
    NUM_HEADS,
    NUM_LAYERS,
    TOLERANCE,
    RandomSequence,
    deal_blocks,
    exact_attention,
    nan_cache,
    run_step,
)


@pytest.fixture(scope="module")
def backend() -> TorchBackend:
    return TorchBackend(CPU)


@pytest.mark.parametrize("seed", range(24))
def test_random_mixes(backend: TorchBackend, seed: int) -> None:
    """Sequences advance by random chunks and decodes in random company until all are done."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    dtype = [torch.float32, torch.bfloat16, torch.float32, torch.float16][seed % 4]
    config = dataclasses.replace(
        CONFIG, rotary_dim=rng.choice([16, 16, 8, 4]), use_logn_attn=rng.random() < 0.8, seq_length=rng.choice([5, 20])
    )
    # In every third mix; drawn apart, so that the others stay what they are.
    windows = [(), (), (3, 24), (), (), (17, 0)][seed % 6]
    config = dataclasses.replace(config, attention_windows=windows)
    block_size = rng.choice([1, 4, 16])
    lengths = [rng.choice([1, 2, rng.randrange(1, 60)]) for _ in range(rng.randrange(1, 6))]
    num_blocks = sum(-(-n // block_size) for n in lengths) + 12
    cache = nan_cache(config, num_blocks, block_size, dtype)
    tables = deal_blocks(rng, lengths, block_size, num_blocks)
    sequences = [
        RandomSequence(config, length, rng.choice([1.0, 3.0, 7.0]), table, dtype)
        for length, table in zip(lengths, tables, strict=True)
    ]
    while alive := [seq for seq in sequences if seq.num_done < seq.length]:
        chunks = [
            (seq, min(seq.length - seq.num_done, rng.choice([1, 1, 1, 2, rng.randrange(1, 30)])))
            for seq in rng.sample(alive, rng.randrange(1, len(alive) + 1))
        ]
        run_step(backend, config, cache, chunks, TOLERANCE[dtype])
    written = ~cache.data.isnan().any(-1).any(0).any(0).any(0)
    own = {
        table[p // block_size] * block_size + p % block_size
        for table, length in zip(tables, lengths, strict=True)
        for p in range(length)
    }
    assert set(written.nonzero()[:, 0].tolist()) == own, "a step writes its own slots only"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_fragmented", [False, True])
def test_a_long_context(backend: TorchBackend, dtype: torch.dtype, is_fragmented: bool) -> None:
    """Longer than whatever pieces a backend may read a context in; one decode and one chunk at its end."""
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, num_layers=NUM_LAYERS, seq_length=2000)
    length = 2600
    blocks = list(range(200))
    if is_fragmented:
        blocks = blocks[60:] + blocks[:60]
    cache = nan_cache(config, 200, 16, dtype)
    seq = RandomSequence.__new__(RandomSequence)
    seq.alpha, seq.table, seq.length, seq.num_done = 3.0, blocks, length, 0
    seq.qkv = torch.randn(NUM_LAYERS, length, 3 * NUM_HEADS * config.head_dim).to(dtype)
    first = 2590
    seq.expected = torch.stack([exact_attention(layer, 3.0, config, first=first) for layer in seq.qkv])
    batch = ForwardBatch.build([seq.span(first)], config, 16, CPU)
    plan = backend.plan_attention(batch, cache)
    for layer in range(NUM_LAYERS):
        backend.attention(seq.qkv[layer, :first], layer, batch, plan)
    seq.num_done = first
    run_step(backend, config, cache, [(seq, 1)], TOLERANCE[dtype])
    run_step(backend, config, cache, [(seq, 8)], TOLERANCE[dtype])
    run_step(backend, config, cache, [(seq, 1)], TOLERANCE[dtype])


@pytest.mark.parametrize("num_tokens", [1, 2, 9])
def test_scores_far_apart(backend: TorchBackend, num_tokens: int) -> None:
    """A softmax that overflowed or a merge that divided by zero would show here."""
    torch.manual_seed(1)
    cache = nan_cache(CONFIG, 20, 4, torch.float32)
    seq = RandomSequence(CONFIG, 40, 1.0, [3, 4, 9, 8, 0, 1, 2, 15, 17, 11], torch.float32)
    seq.qkv *= 30
    seq.expected = torch.stack([exact_attention(layer, 1.0, CONFIG) for layer in seq.qkv])
    run_step(backend, CONFIG, cache, [(seq, 40 - num_tokens)], 1e-3)
    run_step(backend, CONFIG, cache, [(seq, num_tokens)], 1e-3)


def test_the_result_does_not_depend_on_neighbours(backend: TorchBackend) -> None:
    """Bit for bit: a decode and a chunk alone, and the same between others."""
    torch.manual_seed(2)
    tables = [[1, 2, 3], [7, 5, 6], [10, 11, 12], [9, 8, 0]]
    alphas = [1.0, 3.0, 7.0, 1.0]

    def run(which: list[int]) -> dict[int, torch.Tensor]:
        cache = nan_cache(CONFIG, 13, 8, torch.float32)
        outs = {}
        for lengths in ([11, 9, 14, 3], [1, 6, 1, 5]):
            starts = [0, 0, 0, 0] if lengths[0] == 11 else [11, 9, 14, 3]
            spans = [SequenceSpan([0] * lengths[i], starts[i], alphas[i], tables[i], 1) for i in which]
            batch = ForwardBatch.build(spans, CONFIG, 8, CPU)
            plan = backend.plan_attention(batch, cache)
            qkv = torch.cat([inputs[i][starts[i] : starts[i] + lengths[i]] for i in which])
            out = backend.attention(qkv, 1, batch, plan)
            outs = dict(zip(which, out.split([lengths[i] for i in which]), strict=True))
        return outs

    inputs = [torch.randn(20, 3 * NUM_HEADS * 16) for _ in range(4)]
    together = run([2, 0, 3, 1])
    for i in range(4):
        assert torch.equal(run([i])[i], together[i])
