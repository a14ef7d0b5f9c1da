"""The decode attention kernel against attention in float64, over scattered blocks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from model.backends import torch_attention
from model.backends.cpu.decode_attention import DecodePlan, decode_attention_code
from model.contract.config import ModelConfig
from model.execution.forward_batch import SequenceSpan
from model.execution.kv_cache import KVCache, quantize
from tests.support.engine_driver import LoadedModel

pytest.importorskip("llvmlite", reason="the kernel needs llvmlite")

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
BLOCK_SIZE = 16
LENGTHS = [1, 2, 15, 16, 17, 31, 33, 100, 1000]


def random_cache(dtype: torch.dtype, head_dim: int, num_blocks: int) -> tuple[KVCache, torch.Tensor]:
    """A cache of two layers, and what it holds as float64."""
    x = torch.randn(2, 2, 3, num_blocks * BLOCK_SIZE, head_dim)
    if dtype == torch.int8:
        data, scales = quantize(x)
        return KVCache(data, BLOCK_SIZE, scales), data.double() * scales[..., None].double()
    return KVCache(x.to(dtype), BLOCK_SIZE), x.to(dtype).double()


def spans_of(lengths: list[int], num_blocks: int) -> list[SequenceSpan]:
    free = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(1)).tolist()
    spans = []
    for length in lengths:
        count = -(-length // BLOCK_SIZE)
        spans.append(SequenceSpan([0], length - 1, 1.0, free[:count], 1))
        free = free[count:]
    return spans


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("head_dim", [16, 32, 64, 128])
@pytest.mark.parametrize("size", [1.0, 30.0], ids=["flat", "peaked"])
def test_the_softmax_of_all_cached_keys(dtype: torch.dtype, head_dim: int, size: float) -> None:
    num_blocks = sum(-(-length // BLOCK_SIZE) for length in LENGTHS) + 5
    cache, values = random_cache(dtype, head_dim, num_blocks)
    spans = spans_of(LENGTHS, num_blocks)
    code = decode_attention_code(cache)
    assert code is not None
    rows = [2 * i + 1 for i in range(len(spans))]  # between rows of other sequences
    plan = DecodePlan(code, spans, rows, cache, BLOCK_SIZE)
    wide = torch.randn(2 * len(spans) + 1, 2, 3, head_dim) * size / math.sqrt(head_dim)
    query = wide[:, 0]  # strided, as the rotated queries are
    for layer in (0, 1, 0):
        out = torch.full((len(query), 3, head_dim), math.nan)
        plan.attend(query, layer, out)
        assert out[::2].isnan().all(), "rows of others are not touched"
        for span, row in zip(spans, rows, strict=True):
            slots = [b * BLOCK_SIZE + i for b in span.block_table for i in range(BLOCK_SIZE)][: span.context_len]
            keys, found = values[layer, 0][:, slots], values[layer, 1][:, slots]
            probs = torch.softmax(query[row].double()[:, None] @ keys.transpose(1, 2), -1)
            torch.testing.assert_close(out[row].double(), (probs @ found)[:, 0], rtol=1e-5, atol=2e-6 * max(1, size))


def test_more_threads_than_work_and_one_thread_agree() -> None:
    cache, _ = random_cache(torch.bfloat16, 64, 8)
    query = torch.randn(2, 3, 64)
    before, results = torch.get_num_threads(), []
    for num_threads in (1, 2, 9):
        torch.set_num_threads(num_threads)
        code = decode_attention_code(cache)
        assert code is not None
        out = torch.empty(2, 3, 64)
        DecodePlan(code, spans_of([5, 40], 8), [0, 1], cache, BLOCK_SIZE).attend(query, 0, out)
        results.append(out)
    torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize(
    ("dtype", "head_dim"), [(torch.float16, 64), (torch.float32, 24), (torch.float32, 272)], ids=str
)
def test_what_it_cannot_serve_is_left_to_torch(dtype: torch.dtype, head_dim: int) -> None:
    assert decode_attention_code(KVCache(torch.empty(1, 2, 1, 16, head_dim, dtype=dtype), 16)) is None


def test_the_engine_without_it_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.model.test_kv_cache import stepwise_logits

    folder = GOLDEN / "ntk_logn_fp32"
    assert ModelConfig.from_folder(folder).head_dim % 16 == 0
    ids = [(7 * i) % 250 for i in range(80)]
    model = LoadedModel(folder)
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        with_kernel = stepwise_logits(model, ids, dtype)
        with monkeypatch.context() as patch:
            patch.setattr(torch_attention, "decode_attention_code", lambda cache: None)
            without = stepwise_logits(model, ids, dtype)
        torch.testing.assert_close(with_kernel, without, rtol=1e-4, atol=1e-4)
