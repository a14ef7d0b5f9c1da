"""The reference backend's operations beside attention, and what it chooses for a CPU."""

from __future__ import annotations

import types

import pytest
import torch
import torch.nn.functional as F

from model.backends import make_backend
from model.backends.torch_backend import TorchBackend, require_known_dtype
from model.contract.errors import ConfigError
from model.execution.kv_cache import allocate_kv_cache, kv_cache_block_bytes
from tests.support.random_attention import CONFIG, CPU, NUM_HEADS, NUM_LAYERS, TOLERANCE


@pytest.fixture(scope="module")
def backend() -> TorchBackend:
    return TorchBackend(CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("num_rows", [1, 2, 16, 65])
def test_linear(backend: TorchBackend, dtype: torch.dtype, has_bias: bool, num_rows: int) -> None:
    torch.manual_seed(3)
    weight = (torch.randn(200, 136) / 12).to(dtype)
    bias = torch.randn(200).to(dtype) if has_bias else None
    x = torch.randn(num_rows, 136).to(dtype)
    kernel = backend.prepare_linear(weight.clone(), bias)
    out = kernel(x)
    assert out.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(out, F.linear(x, weight, bias), rtol=tolerance, atol=tolerance)
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance)


def test_linear_of_rows_that_are_a_view(backend: TorchBackend) -> None:
    torch.manual_seed(4)
    weight = torch.randn(64, 32).bfloat16()
    x = torch.randn(10, 64).bfloat16()
    kernel = backend.prepare_linear(weight.clone(), None)
    torch.testing.assert_close(kernel(x[::2, ::2]), F.linear(x[::2, ::2], weight), rtol=1e-2, atol=1e-1)


def test_without_the_private_operators_linear_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.backends.onednn_linear.packed_linear_works", lambda: False)
    weight, x = torch.randn(8, 4).bfloat16(), torch.randn(3, 4).bfloat16()
    linear = TorchBackend(CPU, own_kernels=False).prepare_linear(weight, None)
    assert torch.equal(linear(x), F.linear(x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rms_norm(backend: TorchBackend, dtype: torch.dtype) -> None:
    """Normalise in float32, cast, multiply by the weight: for half precision that order shows, bit for bit."""
    torch.manual_seed(5)
    x = (torch.randn(7, 64) * 5).to(dtype)
    weight = (torch.randn(64) + 1).to(dtype)
    wide = x.float()
    normalised = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    expected = normalised.to(dtype) * weight
    out = backend.rms_norm(x, weight, 1e-6)
    assert out.dtype == dtype
    if dtype == torch.float32:
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    else:
        # The reciprocal root may differ in its last bit, which rarely reaches the cast.
        assert (out != expected).float().mean() < 0.01
        torch.testing.assert_close(out, expected, rtol=1e-2, atol=1e-2)


def test_rms_norm_of_zeros_and_of_large_values(backend: TorchBackend) -> None:
    ones = torch.ones(8)
    assert torch.equal(backend.rms_norm(torch.zeros(2, 8), ones, 1e-6), torch.zeros(2, 8))
    large = backend.rms_norm(torch.full((1, 8), 60000.0).half(), ones.half(), 1e-6)
    torch.testing.assert_close(large, torch.ones(1, 8).half()), "the squares would overflow float16"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_silu_mul(backend: TorchBackend, dtype: torch.dtype) -> None:
    torch.manual_seed(6)
    gate, up = torch.randn(5, 33).to(dtype), torch.randn(5, 33).to(dtype)
    before = gate.clone(), up.clone()
    out = backend.silu_mul(gate, up)
    exact = up.double() * gate.double() * torch.sigmoid(gate.double())
    torch.testing.assert_close(out.double(), exact, rtol=1e-2, atol=TOLERANCE[dtype])
    assert torch.equal(gate, before[0])
    assert torch.equal(up, before[1])


@pytest.mark.parametrize("requested", ["bfloat16", "float16", "float32"])
def test_a_requested_dtype_is_taken(backend: TorchBackend, requested: str) -> None:
    assert backend.resolve_dtype(requested, "bfloat16") == getattr(torch, requested)


@pytest.mark.parametrize("name", ["float64", "half", "", "int8"])
def test_unknown_dtypes_are_refused(backend: TorchBackend, name: str) -> None:
    with pytest.raises(ConfigError, match="unknown dtype"):
        backend.resolve_dtype(name, None)
    with pytest.raises(ConfigError, match="use one of bfloat16, float16, float32"):
        require_known_dtype(name)


@pytest.mark.parametrize(
    ("has_fast_bf16", "declared", "expected"),
    [
        (True, "float32", torch.float32),
        (True, "bfloat16", torch.bfloat16),
        (True, "float16", torch.bfloat16),
        (True, None, torch.bfloat16),
        (False, "bfloat16", torch.float32),
        (False, "float16", torch.float32),
        (False, None, torch.float32),
    ],
)
def test_auto_dtype_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, has_fast_bf16: bool, declared: str | None, expected: torch.dtype
) -> None:
    backend = TorchBackend(CPU)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_fast_bf16)
    assert backend.resolve_dtype("auto", declared) == expected


def test_a_torch_without_onednn_has_no_fast_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "mkldnn", types.SimpleNamespace())
    assert TorchBackend(CPU).resolve_dtype("auto", "bfloat16") == torch.float32


@pytest.mark.parametrize("device", ["tpu", "cpu:x", "cuda:-1", "gpu", ""])
def test_unknown_devices_are_refused(device: str) -> None:
    with pytest.raises(ConfigError, match="is not one of auto, cpu, cuda"):
        make_backend(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_an_absent_cuda_device(device: str) -> None:
    with pytest.raises(ConfigError, match="sees no CUDA device"):
        make_backend(device)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_the_cpu_backend(device: str) -> None:
    backend = make_backend(device)
    assert backend.device.type == "cpu"
    assert 0 < backend.available_memory_bytes(0.9) <= 4 << 30
    assert backend.default_max_num_batched_tokens() > 0


def test_kv_cache_sizes() -> None:
    cache = allocate_kv_cache(CONFIG, num_blocks=10, block_size=16, dtype=torch.bfloat16, device=CPU)
    assert cache.num_blocks == 10
    assert cache.data.shape == (NUM_LAYERS, 2, NUM_HEADS, 160, 16)
    assert cache.data.nbytes == 10 * kv_cache_block_bytes(CONFIG, 16, torch.bfloat16)
