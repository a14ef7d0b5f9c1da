"""GPTQ of one linear: better than plain rounding where inputs are correlated, exact in what it stores."""

from __future__ import annotations

import pytest
import torch

from model.backends.weights import GPTQTensors
from model.contract.errors import CheckpointError
from model.quantization.gptq import dequantize
from model.quantization.offline.gptq_layout import check_shape, pack_linear
from model.quantization.offline.gptq_solver import Hessian, output_error, quantize_linear
from model.quantization.packing import pack_rows, unpack_rows


def inputs(num_inputs: int, seed: int = 0) -> torch.Tensor:
    """Rows whose entries depend on each other, some much larger than others."""
    generator = torch.Generator().manual_seed(7)
    mix = torch.randn(num_inputs, num_inputs, generator=generator) / num_inputs**0.5
    size = torch.rand(num_inputs, generator=generator) * 3 + 0.05
    hidden = torch.randn(2048, num_inputs, generator=torch.Generator().manual_seed(seed))
    return (hidden @ mix + 0.5 * hidden[:, :1]) * size


def linear(num_inputs: int, num_outputs: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    weight = torch.randn(num_outputs, num_inputs, generator=torch.Generator().manual_seed(1))
    hessian = Hessian(num_inputs, torch.device("cpu"))
    for part in inputs(num_inputs).split(300):
        hessian.add(part)
    return weight, hessian.matrix


def test_the_hessian_is_the_mean_of_all_rows() -> None:
    x = inputs(32)
    assert torch.allclose(linear(32)[1], x.t() @ x / len(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("num_inputs", "group_size"), [(256, 128), (256, 32), (256, -1), (256, 192), (344, 128), (256, 24), (40, 64)]
)
@pytest.mark.parametrize("act_order", [False, True])
def test_outputs_are_nearer_than_by_rounding(bits: int, num_inputs: int, group_size: int, act_order: bool) -> None:
    weight, hessian = linear(num_inputs)
    before = weight.clone(), hessian.clone()
    settings = {"bits": bits, "group_size": group_size, "damp": 0.01}
    ours = quantize_linear(weight, hessian, act_order=act_order, **settings)
    nearest = quantize_linear(weight, torch.eye(num_inputs), act_order=False, **settings)
    x = inputs(num_inputs, seed=9)  # not those it was calibrated with
    exact = x @ weight.t()

    def error(candidate: torch.Tensor) -> float:
        return float((x @ candidate.t() - exact).square().sum())

    assert output_error(weight, ours.dequantized(), hessian) < 0.9 * output_error(
        weight, nearest.dequantized(), hessian
    )
    if num_inputs >= 256:
        assert error(ours.dequantized()) < error(nearest.dequantized())
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])


def test_with_independent_inputs_it_is_plain_rounding() -> None:
    weight, _ = linear(256)
    result = quantize_linear(weight, torch.eye(256), bits=4, group_size=128, act_order=False, damp=0.01)
    scales = result.scales.float()[result.g_idx.long()].t()
    nearest = (weight / scales).round().clamp(-8, 7) * scales
    assert torch.equal(result.dequantized(), nearest)
    assert torch.equal(result.g_idx, (torch.arange(256) // 128).int())


def test_the_error_is_that_of_real_outputs() -> None:
    weight, hessian = linear(64)
    other = weight + 0.1
    x = inputs(64)
    exact = x @ weight.t()
    real = ((x @ other.t() - exact).square().sum() / exact.square().sum()).item()
    assert output_error(weight, other, hessian) == pytest.approx(real, rel=1e-3)


@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_stored_is_what_was_chosen(bits: int) -> None:
    weight, hessian = linear(256)
    result = quantize_linear(weight, hessian, bits=bits, group_size=64, act_order=True, damp=0.01)
    assert not torch.equal(result.g_idx, (torch.arange(256) // 64).int()), "act-order mixes the groups"
    stored = pack_linear(result, None)
    assert {name: tensor.dtype for name, tensor in stored.items()} == {
        "qweight": torch.int32,
        "qzeros": torch.int32,
        "scales": torch.float16,
        "g_idx": torch.int32,
        "bias": torch.float16,
    }
    assert stored["qweight"].shape == (256 * bits // 32, 64)
    assert stored["qzeros"].shape == (4, 64 * bits // 32)
    groups = stored["g_idx"].long()
    read = dequantize(
        GPTQTensors(stored["qweight"], stored["qzeros"], stored["scales"], groups, bits), torch.float32
    )
    assert torch.equal(read, result.dequantized())


@pytest.mark.parametrize("bits", [4, 8])
def test_packing_is_undone_by_unpacking(bits: int) -> None:
    values = torch.randint(0, 1 << bits, (64, 5), generator=torch.Generator().manual_seed(bits), dtype=torch.uint8)
    values[:8] = (1 << bits) - 1  # the sign bit of a word is a bit like any other
    assert torch.equal(unpack_rows(pack_rows(values, bits), bits).to(torch.uint8), values)


def test_inputs_never_seen_and_weights_of_nothing() -> None:
    weight, hessian = linear(256)
    hessian[5], hessian[:, 5] = 0, 0
    weight[3] *= 1e-9
    weight[4] = 0
    result = quantize_linear(weight, hessian, bits=4, group_size=128, act_order=False, damp=0.01)
    back = result.dequantized()
    assert bool(back.isfinite().all())
    assert float(back[3].abs().max()) < 1e-4
    assert not bool(back[4].any())
    few = torch.zeros(256, 256)
    few[0, 0] = 1.0
    assert bool(
        quantize_linear(weight, few, bits=4, group_size=128, act_order=True, damp=0.01).dequantized().isfinite().all()
    )


def test_broken_numbers_are_refused() -> None:
    weight, hessian = linear(64)
    weight[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="NaN"):
        quantize_linear(weight, hessian, bits=4, group_size=-1, act_order=False, damp=0.01)
    with pytest.raises(CheckpointError, match=r"h\.0: 12 x 64 .* try --bits 8"):
        check_shape("h.0", 12, 64, 4)
