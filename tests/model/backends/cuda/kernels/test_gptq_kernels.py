"""Quantised products against the weight that the published layout stands for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model.backends.cuda import torch_operations
from model.backends.cuda.gptq_layout import PackedWeight, pack, pack_grouped
from model.backends.cuda.kernels.matmul import gptq_matmul as gptq
from model.backends.cuda.kernels.matmul.gptq_dequantize import dequantize as dequantize_packed
from model.backends.weights import GPTQTensors, GroupedWeight
from model.quantization.at_load import quantize_at_load
from model.quantization.gptq import dequantize
from model.quantization.grouped import expand, moved
from tests.support.quantized_tensors import pack_rows

TOLERANCE = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


class Layer:
    """A random quantised layer: packed for the kernels, and dequantised by the reference."""

    def __init__(
        self, bits: int, group_size: int, device: torch.device, *, shape: tuple[int, int] = (320, 72),
        is_symmetric: bool = False, has_act_order: bool = False, scale_dtype: torch.dtype = torch.float16,
    ) -> None:  # fmt: skip
        num_inputs, num_outputs = shape
        size = num_inputs if group_size == -1 else group_size
        num_groups = -(-num_inputs // size)
        q = torch.randint(0, 1 << bits, shape)
        zeros = torch.randint(1, (1 << bits) + 1, (num_groups, num_outputs))
        if is_symmetric:
            zeros.fill_(1 << (bits - 1))
        scales = (torch.rand(num_groups, num_outputs) / (8 << bits)).to(scale_dtype)
        groups = torch.arange(num_inputs) // size
        if has_act_order:
            groups = groups[torch.randperm(num_inputs)]
        qweight = pack_rows(q, bits)
        qzeros = pack_rows((zeros - 1).t(), bits).t().contiguous()
        tensors = (qweight, qzeros, scales, groups)
        self.expected = dequantize(GPTQTensors(*tensors, bits), torch.float32)
        packed = pack(GPTQTensors(*(x.to(device) for x in tensors), bits))  # type: ignore[call-arg]
        assert packed is not None
        self.packed: PackedWeight = packed


CASES = [
    # bits, group size, dtype, symmetric, act-order
    (4, 128, torch.bfloat16, True, False),
    (4, 32, torch.float32, False, True),
    (4, 64, torch.float16, False, False),
    (4, -1, torch.float32, True, False),
    (8, 128, torch.float32, False, False),
    (8, 32, torch.bfloat16, True, True),
    (8, -1, torch.float16, False, False),
]


@pytest.mark.parametrize(("bits", "group_size", "dtype", "is_symmetric", "has_act_order"), CASES)
@pytest.mark.parametrize("num_rows", [1, 2, 19])
def test_products(
    device: torch.device, bits: int, group_size: int, dtype: torch.dtype, is_symmetric: bool, has_act_order: bool,
    num_rows: int,
) -> None:  # fmt: skip
    layer = Layer(bits, group_size, device, is_symmetric=is_symmetric, has_act_order=has_act_order)
    assert (layer.packed.zeros is None) == is_symmetric
    assert (layer.packed.permutation is not None) == (has_act_order and group_size != -1)
    x = torch.randn(num_rows, 320).to(dtype)
    bias = torch.randn(72).to(dtype) if num_rows != 2 else None
    out = gptq.gptq_matmul(x.to(device), layer.packed, None if bias is None else bias.to(device))
    assert out.dtype == dtype
    exact = F.linear(x.double(), layer.expected.double(), None if bias is None else bias.double())
    torch.testing.assert_close(out.double().cpu(), exact, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize(("bits", "group_size", "dtype"), [(4, 128, torch.bfloat16), (8, 32, torch.float32)])
def test_tiles_of_one_size(device: torch.device, bits: int, group_size: int, dtype: torch.dtype) -> None:
    """To the bit the same for a row alone and among any number of others, and as exact."""
    layer = Layer(bits, group_size, device)
    x = torch.randn(37, 320).to(dtype).to(device)
    together = gptq.gptq_matmul(x, layer.packed, None, batch_invariant=True)
    exact = F.linear(x.double().cpu(), layer.expected.double())
    torch.testing.assert_close(together.double().cpu(), exact, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    for rows in (slice(0, 1), slice(5, 6), slice(11, 30)):
        assert torch.equal(gptq.gptq_matmul(x[rows], layer.packed, None, batch_invariant=True), together[rows])


@pytest.mark.parametrize(("bits", "group_size", "dtype", "is_symmetric", "has_act_order"), CASES[:2] + CASES[5:])
def test_many_rows(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, bits: int, group_size: int, dtype: torch.dtype,
    is_symmetric: bool, has_act_order: bool,
) -> None:  # fmt: skip
    """Two slices of the outputs, the second one narrower."""
    monkeypatch.setattr(gptq, "_SLICE_BYTES", 320 * 128 * dtype.itemsize)
    layer = Layer(
        bits, group_size, device, shape=(320, 200), is_symmetric=is_symmetric, has_act_order=has_act_order
    )
    x = torch.randn(gptq.MAX_ROWS_OF_TILES + 1, 320).to(dtype)
    bias = torch.randn(200).to(dtype)
    out = gptq.gptq_matmul(x.to(device), layer.packed, bias.to(device))
    exact = F.linear(x.double(), layer.expected.double(), bias.double())
    torch.testing.assert_close(out.double().cpu(), exact, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


GROUPED = [
    # mode or None (drawn), bits, group size, zero, offsets
    ("nf4", 4, 64, 0, False),
    (None, 4, 32, 0, True),  # Q4_1, Q4_K
    (None, 4, 32, 8, False),  # Q4_0
    (None, 8, 16, 128, False),  # Q6_K
    (None, 8, 32, 128, True),  # Q5_K
    (None, 8, 320, 128, False),  # one group
]


def grouped(case: tuple[str | None, int, int, int, bool], num_outputs: int) -> GroupedWeight:
    mode, bits, group_size, zero, has_offsets = case
    if mode is not None:
        made = quantize_at_load(torch.randn(num_outputs, 320) / 16, mode)
        assert made is not None
        return made
    size = (num_outputs, 320 // group_size)
    values = torch.randint(0, 1 << bits, (num_outputs, 320), dtype=torch.uint8)
    offsets = torch.randn(size) / 16 if has_offsets else None
    return GroupedWeight(values, torch.rand(size) / (4 << bits), offsets, bits, zero)


@pytest.mark.parametrize(("case", "dtype"), [
    (GROUPED[0], torch.float32), (GROUPED[1], torch.bfloat16), (GROUPED[2], torch.float16),
    (GROUPED[3], torch.float32), (GROUPED[4], torch.float16), (GROUPED[5], torch.bfloat16),
])  # fmt: skip
def test_grouped_products(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, case: tuple[str | None, int, int, int, bool],
    dtype: torch.dtype,
) -> None:  # fmt: skip
    monkeypatch.setattr(gptq, "_SLICE_BYTES", 320 * 64 * dtype.itemsize)
    weight = grouped(case, 72)
    packed = pack_grouped(moved(weight, device), wide_results=True)
    assert packed is not None
    for num_rows in (1, 19, gptq.MAX_ROWS_OF_TILES + 1 if dtype == torch.float32 else 2):
        x = torch.randn(num_rows, 320).to(dtype)
        out = gptq.gptq_matmul(x.to(device), packed, None)
        reference = torch_operations.gptq_matmul(x.to(device), packed, None)
        assert out.dtype == reference.dtype == torch.float32
        exact = F.linear(x.double(), expand(weight, torch.float32).double())
        for found in (out, reference):
            assert float((found.double().cpu() - exact).norm() / exact.norm()) < TOLERANCE[dtype] / 4


def test_grouped_weights_dequantise_exactly(device: torch.device) -> None:
    for case in GROUPED:
        weight = grouped(case, 72)
        packed = pack_grouped(moved(weight, device))
        assert packed is not None
        found = dequantize_packed(packed, torch.float32, 0, 72).cpu()
        expected = expand(weight, torch.float32)
        tolerance = 0 if (weight.offsets is None and weight.zero != 0) or weight.codes is not None else 1e-6
        assert float((found - expected).abs().max()) <= tolerance


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dequantising_is_exact(device: torch.device, bits: int, scale_dtype: torch.dtype) -> None:
    layer = Layer(bits, 64, device, has_act_order=True, scale_dtype=scale_dtype)
    permutation = layer.packed.permutation
    assert permutation is not None
    found = dequantize_packed(layer.packed, torch.float32, 0, 72)
    assert torch.equal(found.cpu(), layer.expected[:, permutation.cpu().long()])


def test_packing_takes_no_more_than_the_file(device: torch.device) -> None:
    layer = Layer(4, 128, device, shape=(1024, 256), is_symmetric=True)
    assert layer.packed.words.nbytes == 1024 * 256 // 2
    assert layer.packed.nbytes == layer.packed.words.nbytes + 8 * 256 * 2


@pytest.mark.parametrize(
    "groups",
    [
        torch.arange(64) // 8,  # smaller than a slice
        torch.arange(64) // 24,  # no multiple of one
        torch.tensor([0] * 48 + [1] * 16),  # the last may be shorter, but
        torch.tensor([0] * 16 + [1] * 48),  # not the first
    ],
)
def test_groups_that_do_not_fit_are_left_to_the_caller(groups: torch.Tensor) -> None:
    num_groups = int(groups.max()) + 1
    words, zeros = torch.zeros(8, 8, dtype=torch.int32), torch.zeros(num_groups, 1, dtype=torch.int32)
    packed = pack(GPTQTensors(words, zeros, torch.ones(num_groups, 8), groups, 4))
    assert (packed is not None) == (groups.tolist() == [0] * 48 + [1] * 16)


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_of_either_layout(bits: int) -> None:
    zeros = torch.randint(1, 1 << bits, (2, 8))
    words, scales, groups = torch.zeros(32 * bits // 32, 8, dtype=torch.int32), torch.ones(2, 8), torch.arange(32) // 16
    for offset in (0, 1):
        qzeros = pack_rows((zeros - offset).t(), bits).t().contiguous()
        packed = pack(GPTQTensors(words, qzeros, scales, groups, bits, offset))
        assert packed is not None and packed.zeros is not None
        assert torch.equal(packed.zeros.long(), zeros)


@pytest.mark.parametrize(
    ("num_warps", "num_steps", "expected"), [(32, 64, 16), (344, 32, 4), (2000, 32, 1), (64, 16, 4), (1, 3, 1)]
)
def test_number_of_splits(num_warps: int, num_steps: int, expected: int) -> None:
    assert gptq.choose_num_splits(num_warps, num_steps, 1056) == expected


@pytest.mark.parametrize("tiles", dict.fromkeys(
    gptq.choose_tiles(num_rows, num_outputs, torch.bfloat16)
    for num_rows in (1, 16, 32, 64) for num_outputs in (72, 10000, 20000)
))  # fmt: skip
def test_each_tile_of_the_table(device: torch.device, monkeypatch: pytest.MonkeyPatch, tiles: gptq.Tiles) -> None:
    """Whatever number of outputs and rows it is meant for."""
    monkeypatch.setattr(gptq, "choose_tiles", lambda *_: tiles)
    monkeypatch.setattr(gptq, "_MIN_STEPS_PER_SPLIT", 1)
    layer = Layer(4, 128, device, shape=(640, 72), is_symmetric=True)
    x = torch.randn(5, 640).bfloat16()
    out = gptq.gptq_matmul(x.to(device), layer.packed, None)
    exact = F.linear(x.double(), layer.expected.double())
    assert float((out.double().cpu() - exact).norm() / exact.norm()) < 1e-2
