"""The CPU's attention kernel: exact, and to the bit the same for a row however its sequence came to it."""

from __future__ import annotations

import math

import pytest
import torch

from model.backends import torch_backend
from model.backends.cpu.attention import step_attention
from model.backends.cpu.attention.step_attention import StepAttention, attention_code
from model.backends.cpu.jit import has_integer_products
from model.execution.forward_batch import ForwardBatch, SequenceSpan
from model.execution.kv_cache import KVCache
from model.scheduling.sequence import NO_BLOCK
from tests.support.engine_driver import LoadedModel
from tests.support.paths import GOLDEN

pytest.importorskip("llvmlite", reason="the kernel needs llvmlite")

HEADS = 3
LENGTH = 205  # some blocks of keys, and more rows than a tile has
KINDS = [
    (torch.float32, torch.float32, 2e-6),
    (torch.bfloat16, torch.bfloat16, 1.5e-2),
    (torch.float32, torch.bfloat16, 1.5e-2),
    (torch.float32, torch.int8, 3e-2),
]

# Head, half of what is rotated of it, and tokens in a block; the shapes of the published checkpoints, and odd ones.
SHAPES = [(24, 12, 1), (128, 64, 16), (32, 16, 2), (64, 24, 16)]


def attend(
    qkv: torch.Tensor,
    chunks: list[int],
    cache_dtype: torch.dtype,
    head_dim: int,
    half: int,
    block_size: int,
    window: int = 0,
) -> torch.Tensor:
    """Attention of a sequence whose rows come in chunks, in scattered blocks of a cache of NaNs.

    Behind a window it loses its blocks, which are NaNs again.
    """
    windows = (window,) if window else ()
    num_blocks = -(-len(qkv) // block_size) + 3
    shape = (1, 2, HEADS, num_blocks * block_size, head_dim)
    if cache_dtype == torch.int8:
        cache = KVCache(torch.zeros(shape, dtype=cache_dtype), block_size, torch.full(shape[:-1], math.nan), windows)
    else:
        cache = KVCache(torch.full(shape, math.nan, dtype=cache_dtype), block_size, windows=windows)
    code = attention_code(cache, qkv.dtype)
    assert code is not None
    table = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(1)).tolist()
    out: list[torch.Tensor] = []
    start = 0
    for count in chunks:
        positions = torch.arange(start, start + count)
        angles = positions[:, None].float() / torch.arange(1, half + 1)
        slots = [table[p // block_size] * block_size + p % block_size for p in positions.tolist()]
        scale = torch.full((count,), 1 / math.sqrt(head_dim))
        for index in range(max(0, start + 1 - window) // block_size if window else 0):
            if table[index] != NO_BLOCK:
                lost = slice(table[index] * block_size, (table[index] + 1) * block_size)
                if cache.scales is None:
                    cache.data[..., lost, :] = math.nan
                else:
                    cache.scales[..., lost] = math.nan
                table[index] = NO_BLOCK
        spans = [SequenceSpan([0] * count, start, 1.0, table, 1)]
        batch = ForwardBatch(
            spans, positions, angles.cos(), angles.sin(), scale, torch.tensor(slots), positions, block_size
        )
        out.append(StepAttention(code, batch, cache, qkv.dtype).attend(qkv[start : start + count].clone(), 0))
        start += count
    return torch.cat(out)


def exact(qkv: torch.Tensor, head_dim: int, half: int, window: int = LENGTH) -> torch.Tensor:
    """The same in float64."""
    x = qkv.double().view(len(qkv), 3, HEADS, head_dim)
    angles = torch.arange(len(qkv))[:, None, None].double() / torch.arange(1, half + 1)
    x1, x2 = x[:, :2, :, :half], x[:, :2, :, half : 2 * half]
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    rotated = torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin, x[:, :2, :, 2 * half :]], -1)
    scores = torch.einsum("thd,shd->hts", rotated[:, 0], rotated[:, 1]) / math.sqrt(head_dim)
    positions = torch.arange(len(qkv))
    distance = positions[:, None] - positions
    scores = scores.masked_fill((distance < 0) | (distance >= window), -math.inf)
    return torch.einsum("hts,shd->thd", scores.softmax(-1), x[:, 2]).flatten(1)


@pytest.mark.parametrize(
    ("dtype", "cache_dtype", "tolerance", "head_dim", "half", "block_size"),
    [(*kind, *shape) for kind, shape in zip(KINDS, SHAPES, strict=True)]
    + [(*KINDS[1], 20, 8, 4), (*KINDS[3], 20, 8, 4)],
)
def test_exact_and_the_same_in_chunks_of_any_size(
    dtype: torch.dtype, cache_dtype: torch.dtype, tolerance: float, head_dim: int, half: int, block_size: int
) -> None:
    qkv = torch.randn(LENGTH, 3 * HEADS * head_dim).to(dtype)
    whole = attend(qkv, [LENGTH], cache_dtype, head_dim, half, block_size)
    torch.testing.assert_close(whole.double(), exact(qkv, head_dim, half), rtol=tolerance, atol=tolerance)
    for chunks in ([1] * LENGTH, [64, 64, 64, 13], [100, 1, 1, 1, 5, 97]):
        assert torch.equal(attend(qkv, chunks, cache_dtype, head_dim, half, block_size), whole), chunks


@pytest.mark.parametrize(
    ("kind", "shape", "window"),
    [(0, (24, 12, 1), 1), (0, (16, 8, 48), 70), (1, (32, 16, 16), 64), (2, (16, 8, 4), 37), (3, (20, 8, 16), 129)],
)
def test_a_window_is_a_plain_mask_and_the_same_in_chunks_of_any_size(
    kind: int, shape: tuple[int, int, int], window: int
) -> None:
    dtype, cache_dtype, tolerance = KINDS[kind]
    head_dim, half, block_size = shape
    qkv = torch.randn(LENGTH, 3 * HEADS * head_dim).to(dtype)
    whole = attend(qkv, [LENGTH], cache_dtype, head_dim, half, block_size, window)
    torch.testing.assert_close(whole.double(), exact(qkv, head_dim, half, window), rtol=tolerance, atol=tolerance)
    for chunks in ([1] * LENGTH, [64, 64, 64, 13], [100, 1, 1, 1, 5, 97]):
        assert torch.equal(attend(qkv, chunks, cache_dtype, head_dim, half, block_size, window), whole), chunks
    unbounded = attend(qkv, [LENGTH], cache_dtype, head_dim, half, block_size, LENGTH)
    assert torch.equal(unbounded, attend(qkv, [LENGTH], cache_dtype, head_dim, half, block_size))


def test_an_int8_cache_without_products_of_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What processors without AVX512-VNNI do; next to it the integers are as near to the truth."""
    qkv = torch.randn(LENGTH, 3 * HEADS * 36)
    errors = []
    for has_them in (has_integer_products(), False):
        step_attention._compile.cache_clear()
        monkeypatch.setattr(step_attention, "has_integer_products", lambda has_them=has_them: has_them)
        whole = attend(qkv, [LENGTH], torch.int8, 36, 18, 4)
        assert torch.equal(attend(qkv, [70, 1, 1, 133], torch.int8, 36, 18, 4), whole)
        errors.append(float((whole.double() - exact(qkv, 36, 18)).abs().max()))
    step_attention._compile.cache_clear()
    assert max(errors) <= 3e-2
    assert max(errors) <= 1.2 * min(errors)


def test_peaked_and_flat_scores() -> None:
    """A softmax that overflowed, or lost what it had summed before a larger score came, would show here."""
    torch.manual_seed(0)
    for size in (0.0, 1.0, 30.0):
        qkv = torch.randn(LENGTH, 3 * HEADS * 16) * size
        found = attend(qkv, [150, 55], torch.float32, 16, 8, 16)
        torch.testing.assert_close(found.double(), exact(qkv, 16, 8), rtol=1e-3, atol=1e-3 * max(size, 1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_change_nothing(dtype: torch.dtype) -> None:
    qkv = torch.randn(LENGTH, 3 * HEADS * 64).to(dtype)
    before, results = torch.get_num_threads(), []
    for num_threads in (1, 2, 9):
        torch.set_num_threads(num_threads)
        results.append(attend(qkv, [100, 1, 104], dtype, 64, 32, 16))
    torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize(("dtype", "head_dim"), [(torch.float16, 64), (torch.float32, 272), (torch.int8, 6)], ids=str)
def test_what_it_cannot_serve_is_left_to_torch(dtype: torch.dtype, head_dim: int) -> None:
    assert attention_code(KVCache(torch.empty(1, 2, 1, 16, head_dim).to(dtype), 16), torch.float32) is None


def test_the_engine_without_it_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.engine_driver import stepwise_logits

    ids = [(7 * i) % 250 for i in range(80)]
    model = LoadedModel(GOLDEN / "ntk_logn_fp32")
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        with_kernel = stepwise_logits(model, ids, dtype)
        with monkeypatch.context() as patch:
            patch.setattr(torch_backend, "attention_code", lambda cache, dtype: None)
            without = stepwise_logits(model, ids, dtype)
        # What is rounded to the cache's type now and then falls on the other side. (An int8 cache is off by 0.15.)
        tolerance = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.int8: 3e-2}[dtype]
        torch.testing.assert_close(with_kernel, without, rtol=tolerance, atol=tolerance)
