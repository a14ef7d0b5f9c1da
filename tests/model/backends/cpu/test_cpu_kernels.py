"""The CPU kernels for quantised weights against the weight they stand for, in float64."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from model.backends.cpu import jit
from model.backends.cpu.linears import gptq_linear, product_kernels
from model.backends.cpu.linears.gptq_linear import make_gptq_linear
from model.backends.cpu.linears.packed_linear import make_dense_linear
from model.backends.cpu.linears.packing import aligned_empty, pack_gptq_words, pack_integers
from model.backends.torch_backend import TorchBackend
from model.backends.weights import GPTQTensors
from model.quantization.gptq import dequantize
from model.quantization.packing import unpack_rows
from tests.support.quantized_tensors import pack_rows

pytest.importorskip("llvmlite", reason="the kernels need llvmlite")


def random_weight(
    bits: int, num_inputs: int, num_outputs: int, group_size: int, *, symmetric: bool, act_order: bool
) -> GPTQTensors:
    generator = torch.Generator().manual_seed(num_inputs + bits)
    num_groups = num_inputs // group_size
    q = torch.randint(0, 1 << bits, (num_inputs, num_outputs), generator=generator)
    zeros = torch.full((num_groups, num_outputs), 1 << (bits - 1))
    if not symmetric:
        zeros = torch.randint(1, 1 << bits, (num_groups, num_outputs), generator=generator)
    groups = torch.arange(num_inputs) // group_size
    if act_order:
        groups = groups[torch.randperm(num_inputs, generator=generator)]
    scales = (torch.rand(num_groups, num_outputs, generator=generator) * 0.01 + 0.001).half()
    return GPTQTensors(pack_rows(q, bits), pack_rows((zeros - 1).t(), bits).t().contiguous(), scales, groups, bits)


def relative_error(result: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> float:
    exact = x.double() @ weight.double().t() + bias.double()
    return float((result.double() - exact).abs().max() / exact.abs().max())


CASES = [
    # bits, inputs, outputs, group size, symmetric, act-order
    (4, 256, 128, 128, True, False),
    (4, 256, 128, 32, False, False),
    (4, 192, 64, 64, True, True),
    (4, 320, 192, 320, False, False),
    (8, 256, 128, 128, True, False),
    (8, 192, 64, 64, False, True),
    (8, 320, 192, 320, True, False),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_products_are_those_of_the_weight(case: tuple[int, int, int, int, bool, bool], dtype: torch.dtype) -> None:
    bits, num_inputs, num_outputs, group_size, symmetric, act_order = case
    stored = random_weight(bits, num_inputs, num_outputs, group_size, symmetric=symmetric, act_order=act_order)
    weight = dequantize(stored, torch.float32)
    bias = torch.randn(num_outputs)
    made = make_gptq_linear(stored, bias, dtype)
    assert made is not None
    linear, num_bytes = made
    assert num_bytes < num_inputs * num_outputs * (bits / 8) * 1.6 + 16 * num_outputs
    bound = 6e-3 if dtype == torch.bfloat16 else 3e-6
    for num_rows in (*range(1, 18), 63, 64, 130):
        x = torch.randn(num_rows, num_inputs).to(dtype)
        result = linear(x)
        assert result.dtype == dtype
        assert relative_error(result, x, weight, bias) < bound, num_rows


@pytest.mark.skipif(not jit.has_bf16_products(), reason="this processor has no AVX512-BF16")
@pytest.mark.parametrize("wide_results", [False, True])
@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(64, 64), (520, 192)])
def test_bfloat16_weights(num_inputs: int, num_outputs: int, wide_results: bool) -> None:
    weight, bias = torch.randn(num_outputs, num_inputs).bfloat16(), torch.randn(num_outputs).bfloat16()
    linear = make_dense_linear(weight, bias, wide_results=wide_results)
    assert linear is not None
    assert linear.num_bytes == weight.nbytes + 4 * num_outputs
    for num_rows in (*range(1, 20), 64, 131):
        x = torch.randn(num_rows, num_inputs).bfloat16()
        result = linear(x)
        assert result.dtype == (torch.float32 if wide_results else torch.bfloat16)
        assert relative_error(result, x, weight, bias) < (1e-6 if wide_results else 6e-3), num_rows
    assert linear(torch.empty(0, num_inputs).bfloat16()).shape == (0, num_outputs)


def test_threads_share_the_blocks_and_change_nothing() -> None:
    stored = random_weight(4, 128, 320, 64, symmetric=False, act_order=False)
    made = make_gptq_linear(stored, None, torch.float32)
    assert made is not None
    x = torch.randn(9, 128)
    before = torch.get_num_threads()
    results = []
    for num_threads in (1, 2, 3, 7):
        torch.set_num_threads(num_threads)
        results.append(made[0](x))
    torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_without_a_bias_and_from_a_view() -> None:
    stored = random_weight(4, 128, 64, 64, symmetric=True, act_order=False)
    made = make_gptq_linear(stored, None, torch.float32)
    assert made is not None
    x = torch.randn(6, 256)[:, ::2]
    assert relative_error(made[0](x), x, dequantize(stored, torch.float32), torch.zeros(64)) < 3e-6


def test_few_rows_and_many_agree_in_float32() -> None:
    stored = random_weight(8, 256, 64, 128, symmetric=False, act_order=False)
    made = make_gptq_linear(stored, None, torch.float32)
    assert made is not None
    x = torch.randn(70, 256)
    torch.testing.assert_close(torch.cat([made[0](row[None]) for row in x]), made[0](x), rtol=1e-4, atol=1e-4)


def test_the_portable_arithmetic_serves_bfloat16_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product_kernels, "has_bf16_products", lambda: False)
    monkeypatch.setattr(gptq_linear, "load_kernels", product_kernels.load_kernels.__wrapped__)  # which keeps none
    stored = random_weight(4, 256, 64, 128, symmetric=False, act_order=False)
    made = make_gptq_linear(stored, None, torch.bfloat16)
    assert made is not None
    x = torch.randn(3, 256).bfloat16()
    assert made[0](x).dtype == torch.bfloat16
    assert relative_error(made[0](x), x, dequantize(stored, torch.float32), torch.zeros(64)) < 6e-3


@pytest.mark.parametrize(
    ("num_inputs", "num_outputs", "group_size"),
    [(128, 96, 64), (96, 64, 12)],
    ids=["outputs do not divide into blocks", "groups do not divide into vectors"],
)
def test_what_does_not_divide_is_left_to_the_caller(num_inputs: int, num_outputs: int, group_size: int) -> None:
    stored = random_weight(4, num_inputs, num_outputs, group_size, symmetric=True, act_order=False)
    assert make_gptq_linear(stored, None, torch.float32) is None


def test_groups_of_unequal_size_are_left_to_the_caller() -> None:
    stored = random_weight(4, 128, 64, 64, symmetric=True, act_order=False)
    groups = stored.groups.clone()
    groups[0] = 1
    assert make_gptq_linear(stored._replace(groups=groups), None, torch.float32) is None


@pytest.fixture
def no_llvmlite(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("llvmlite"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    product_kernels.load_kernels.cache_clear()
    jit.has_bf16_products.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    yield
    monkeypatch.undo()
    product_kernels.load_kernels.cache_clear()
    jit.has_bf16_products.cache_clear()


@pytest.mark.usefixtures("no_llvmlite")
def test_without_a_compiler_the_caller_expands_the_weight() -> None:
    stored = random_weight(4, 128, 64, 64, symmetric=True, act_order=False)
    assert make_gptq_linear(stored, None, torch.float32) is None
    assert make_gptq_linear(stored, None, torch.bfloat16) is None


def test_what_llvm_refuses_is_left_to_torch(caplog: pytest.LogCaptureFixture) -> None:
    assert jit.compile_functions("define nonsense", ["nonsense"]) is None
    assert "torch's operators serve" in caplog.text


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_bytes_are_where_the_layout_says(bits: int) -> None:
    values = torch.randint(0, 1 << bits, (64, 128))
    packed = pack_integers(values, bits).flatten().tolist()
    inputs = 64 // bits // 2
    for k in range(64):
        for n in range(0, 128, 13):
            block, vector, lane = n // 64, n % 64 // 16, n % 16
            word = ((block * (64 // inputs) + k // inputs) * 4 + vector) * 64 + lane * 4
            if bits == 8:
                assert (packed[word + k % 4] + 128) % 256 == values[k, n]
            else:
                place = k % 8
                half = packed[word + 2 * (place % 2)] | packed[word + 2 * (place % 2) + 1] << 8
                assert half >> (4 * (place // 2)) & 15 == values[k, n]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("num_outputs", [64, 64 * 19])
def test_words_of_the_published_layout_are_packed_as_their_integers_are(bits: int, num_outputs: int) -> None:
    words = torch.randint(-(1 << 31), 1 << 31, (12, num_outputs), dtype=torch.int32)
    assert torch.equal(pack_gptq_words(words, bits), pack_integers(unpack_rows(words, bits), bits))


def test_memory_begins_at_a_cache_line() -> None:
    assert all(aligned_empty(size).data_ptr() % 64 == 0 for size in (1, 100, 4096, 1 << 20))


def _product(bits: int, num_outputs: int, dtype: torch.dtype, *, act_order: bool = False) -> Any:
    if bits >= 16:
        weight = torch.randn(num_outputs, 256) / 16
        return make_dense_linear(weight.to(dtype), torch.randn(num_outputs), wide_results=False)
    weight = random_weight(bits, 256, num_outputs, 64, symmetric=act_order, act_order=act_order)
    made = make_gptq_linear(weight, None, dtype)
    return made and made[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("gate_bits", "up_bits", "num_outputs"), [(16, 16, 200), (4, 4, 192), (8, 4, 64), (4, 16, 128)]
)
def test_two_products_in_one_call_have_the_bits_of_two(
    dtype: torch.dtype, gate_bits: int, up_bits: int, num_outputs: int
) -> None:
    torch.manual_seed(0)
    gate, up = _product(gate_bits, num_outputs, dtype, act_order=True), _product(up_bits, num_outputs, dtype)
    backend = TorchBackend(torch.device("cpu"))
    both = backend.gated_linear(gate, up)
    if dtype == torch.bfloat16 and not jit.has_bf16_products():  # products are in float32, and rounded once more
        assert both is None
        return
    assert both is not None
    for num_rows in (0, 1, 6, 13):
        x = torch.randn(num_rows, 256).to(dtype)
        assert torch.equal(both(x), backend.silu_mul(gate(x), up(x)))


def test_products_that_differ_are_not_joined() -> None:
    backend = TorchBackend(torch.device("cpu"))
    one = _product(16, 128, torch.bfloat16)
    for other in (_product(16, 192, torch.bfloat16), _product(16, 128, torch.float32), lambda x: x):
        assert backend.gated_linear(one, other) is None
