"""RMSNorm, silu-mul, rotary with cache write, and the inputs of a decode step, against plain torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from model.backends.cuda.kernels.attention.rotary import rotate_and_cache
from model.backends.cuda.kernels.decode_inputs import AngleTables, make_decode_inputs
from model.backends.cuda.kernels.matmul.row_matmul import row_matmul
from model.backends.cuda.kernels.matmul.tile_matmul import tile_matmul
from model.backends.cuda.kernels.norm import rms_norm
from model.backends.cuda.kernels.silu_mul import silu_mul
from model.backends.cuda.linear_choice import LinearChoice
from model.backends.cuda.notes import Notes
from model.backends.torch_backend import TorchBackend
from model.execution.forward_batch import ForwardBatch, SequenceSpan
from tests.support.random_attention import CONFIG


def rotated(x: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
    """[T, heads, head_dim] in float32, halves layout."""
    half = batch.cos.shape[1]
    cos, sin = batch.cos[:, None], batch.sin[:, None]
    x1, x2, rest = x[..., :half].float(), x[..., half : 2 * half].float(), x[..., 2 * half :].float()
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest], -1)


DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
REFERENCE = TorchBackend(torch.device("cpu"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden_size", [64, 100])
@pytest.mark.parametrize("has_residual", [False, True])
def test_rms_norm(device: torch.device, dtype: torch.dtype, hidden_size: int, has_residual: bool) -> None:
    rows = torch.randn(5, 2 * hidden_size, device=device).to(dtype)[:, :hidden_size] * 3
    weight = torch.rand(hidden_size, device=device).to(dtype) + 0.5
    residual = torch.randn(5, hidden_size, device=device).to(dtype) if has_residual else None
    summed = rows if residual is None else residual + rows
    out = rms_norm(rows, weight, 1e-6, residual)
    expected = REFERENCE.rms_norm(summed.cpu(), weight.cpu(), 1e-6)
    torch.testing.assert_close(out.cpu(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    if residual is not None:  # the sum is left there; the interpreter truncates to bfloat16
        torch.testing.assert_close(residual, summed, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_mul(device: torch.device, dtype: torch.dtype) -> None:
    both = torch.randn(3, 2 * 1500, device=device).to(dtype)
    gate, up = both[:, :1500], both[:, 1500:]
    wide = gate.double()
    exact = up.double() * wide * torch.sigmoid(wide)
    out = silu_mul(gate, up)
    assert out.is_contiguous()
    torch.testing.assert_close(out.double(), exact, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rotary_dim", [16, 8])
def test_rotary(device: torch.device, dtype: torch.dtype, rotary_dim: int) -> None:
    """Two alphas and positions past the trained length; a row with slot -1 writes nothing."""
    config = dataclasses.replace(CONFIG, rotary_dim=rotary_dim)
    spans = [SequenceSpan([0] * 3, 25, 3.0, [5, 2], 1), SequenceSpan([0], 7, 1.0, [1], 1)]
    batch = ForwardBatch.build(spans, config, 16, torch.device("cpu"))
    qkv = torch.randn(4, 3 * 48).to(dtype)
    q, k, v = qkv.view(4, 3, 3, 16).unbind(1)
    query = (rotated(q, batch) * batch.query_scale[:, None, None]).to(dtype)
    keys = rotated(k, batch).to(dtype)
    slots = batch.slots.clone()
    slots[1] = -1
    cache = torch.full((2, 3, 96, 16), 7.0, dtype=dtype, device=device)
    args = (x.to(device) for x in (qkv, batch.cos, batch.sin, batch.query_scale, slots))
    out = rotate_and_cache(*args, cache, None).cpu()  # type: ignore[call-arg,misc]
    torch.testing.assert_close(out, query, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    expected = torch.full((2, 3, 96, 16), 7.0, dtype=dtype)
    written = slots[slots >= 0]
    expected[0][:, written] = keys[slots >= 0].transpose(0, 1)
    expected[1][:, written] = v[slots >= 0].transpose(0, 1)
    torch.testing.assert_close(cache.cpu(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_rotary_into_an_int8_cache(device: torch.device) -> None:
    span = SequenceSpan([0] * 5, 11, 3.0, [2], 1)
    batch = ForwardBatch.build([span], CONFIG, 16, torch.device("cpu"))
    qkv = torch.randn(5, 3 * 48)
    qkv[0, 96:112] = 0.0  # a value of zeros has scale 0
    _, k, v = qkv.view(5, 3, 3, 16).unbind(1)
    keys = rotated(k, batch)
    cache = torch.zeros((2, 3, 48, 16), dtype=torch.int8, device=device)
    scales = torch.full((2, 3, 48), -1.0, device=device)
    tensors = (qkv, batch.cos, batch.sin, batch.query_scale, batch.slots)
    rotate_and_cache(*(x.to(device) for x in tensors), cache, scales)  # type: ignore[call-arg,misc]
    for half, exact in ((0, keys), (1, v)):
        scale = scales[half].cpu()[:, batch.slots].T
        torch.testing.assert_close(scale, exact.abs().amax(-1) / 127)
        stored = cache[half].cpu()[:, batch.slots].transpose(0, 1)
        expected = torch.round(exact / torch.where(scale > 0, scale, 1.0)[..., None])
        assert (stored - expected).abs().max() <= 1
        assert (stored != expected).float().mean() < 0.01, "a tie may fall either way, nothing else"
    assert (scales.cpu()[:, :, 0] == -1).all(), "other slots are left alone"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("num_rows", [1, 3])
def test_few_rows_times_a_weight(device: torch.device, dtype: torch.dtype, has_bias: bool, num_rows: int) -> None:
    """Neither side a multiple of the tile; in the activations' dtype and in float32."""
    x, weight = torch.randn(num_rows, 700).to(dtype), (torch.randn(37, 700) / 26).to(dtype)
    bias = torch.randn(37).to(dtype) if has_bias else None
    exact = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    operands = (x.to(device), weight.to(device), None if bias is None else bias.to(device))
    out = row_matmul(*operands)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double().cpu(), exact, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    wide = row_matmul(*operands, torch.float32)
    torch.testing.assert_close(wide.double().cpu(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_rows_in_tiles_of_one_size(device: torch.device, dtype: torch.dtype, has_bias: bool) -> None:
    """Exact, and to the bit the same for a row alone and among any number of others."""
    x, weight = torch.randn(37, 150).to(dtype), (torch.randn(70, 150) / 12).to(dtype)
    bias = torch.randn(70).to(dtype) if has_bias else None
    exact = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    operands = (weight.to(device), None if bias is None else bias.to(device))
    wide = tile_matmul(x.to(device), *operands, torch.float32)
    torch.testing.assert_close(wide.double().cpu(), exact, rtol=1e-4, atol=1e-4)
    together = tile_matmul(x.to(device), *operands)
    assert together.dtype == dtype
    for rows in (slice(0, 1), slice(5, 6), slice(11, 30)):
        assert torch.equal(tile_matmul(x[rows].to(device), *operands), together[rows])


class Products:
    """A weight's products through a choice that is told how long they take."""

    def __init__(self, device: torch.device, notes: Notes, times: list[float]) -> None:
        self.calls: list[int] = []
        self.weight = torch.randn(24, 600, device=device)
        remaining = iter(times)
        choice = LinearChoice(lambda run: next(remaining), notes)
        self.products = [choice.choose(self.library, self.weight, None, torch.float32) for _ in range(2)]
        self.choice = choice

    def library(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(x))
        return torch.nn.functional.linear(x, self.weight)

    def rows_left_to_the_library(self) -> list[int]:
        self.calls.clear()
        for num_rows in (1, 3, 5):
            x = torch.randn(num_rows, 600, device=self.weight.device)
            for product in self.products:
                exact = torch.nn.functional.linear(x, self.weight)
                torch.testing.assert_close(product(x), exact, rtol=1e-4, atol=1e-4)
        return self.calls


TIMES = {"ours": [1.0, 2.0] * 3, "cuBLAS": [3.0, 2.0] * 3, "ours for one": [1.0, 2.0, 3.0, 2.0, 3.0, 2.0]}
LEFT = {"ours": [5, 5], "cuBLAS": [1, 1, 3, 3, 5, 5], "ours for one": [3, 3, 5, 5]}


@pytest.mark.parametrize("faster", TIMES)
def test_the_faster_product_is_used_for_few_rows(device: torch.device, faster: str, tmp_path: Path) -> None:
    """Each shape and number of rows is timed once, after loading; more rows always go to the library."""
    products = Products(device, Notes(tmp_path / "notes.json"), TIMES[faster])
    assert products.rows_left_to_the_library() == LEFT["cuBLAS"]
    products.choice.decide()
    assert products.rows_left_to_the_library() == LEFT[faster]


def test_two_starts_choose_alike(device: torch.device, tmp_path: Path) -> None:
    """However long it takes the second time; another shape is timed for itself."""
    path = tmp_path / "notes.json"
    for times in (TIMES["ours"], TIMES["cuBLAS"], []):
        products = Products(device, Notes(path), times)
        products.choice.decide()
        assert products.rows_left_to_the_library() == LEFT["ours"]


def test_a_shape_that_our_kernel_fails_on_is_cublas(
    device: torch.device, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    products = Products(device, Notes(tmp_path / "notes.json"), [])

    def fail(run: object) -> float:
        raise RuntimeError("Triton Error [CUDA]: out of resources")

    products.choice._time_us = fail
    products.choice.decide()
    assert products.rows_left_to_the_library() == LEFT["cuBLAS"]
    assert "for ours fails: RuntimeError: Triton Error [CUDA]: out of resources" in caplog.text


def test_what_cannot_be_kept_is_not_timed(
    device: torch.device, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    products = Products(device, Notes(tmp_path / "file" / "notes.json"), [])
    products.choice.decide()
    assert products.rows_left_to_the_library() == LEFT["cuBLAS"]
    assert "set TRITON_CACHE_DIR to a folder that stays" in caplog.text


def test_inputs_of_a_decode_step(device: torch.device) -> None:
    """Known tokens, tokens of the step before, and an unused row."""
    spans = [SequenceSpan([7], 20, 3.0, [4, 3], 1), SequenceSpan([11], 0, 1.0, [1], 1)]
    batch = ForwardBatch.build(spans, CONFIG, 16, torch.device("cpu"))
    positions = [ForwardBatch.build([SequenceSpan([0] * 32, 0, a, [0, 1], 1)], CONFIG, 16, device) for a in (1.0, 3.0)]
    angles = AngleTables(
        torch.stack([p.cos for p in positions]), torch.stack([p.sin for p in positions]), positions[0].query_scale
    )
    fields = torch.tensor([[7, 20, 1, 1], [-1 - 2, 0, 0, 0], [0, -1, 0, 0]], dtype=torch.int32, device=device)
    table = torch.tensor([1, 4, 3], dtype=torch.int32, device=device)
    last_ids = torch.tensor([5, 6, 11], device=device)
    found = make_decode_inputs(fields, table, last_ids, angles, 16)
    assert found.token_ids.tolist() == [7, 11, 0]
    assert found.slots.tolist() == [*batch.slots.tolist(), -1]
    assert found.lengths.tolist() == [21, 1, 0]
    assert torch.equal(found.cos[:2].cpu(), batch.cos)
    assert torch.equal(found.sin[:2].cpu(), batch.sin)
    assert torch.equal(found.query_scale[:2].cpu(), batch.query_scale)
