"""Weights that are quantised while they are loaded: what they become, how near they are, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.backends.cpu.linears import product_kernels
from model.backends.cpu.linears.gptq_linear import make_grouped_linear
from model.backends.torch_quantized import TorchGroupedLinear
from model.backends.weights import GroupedWeight
from model.contract.config import QUANTIZED_BITS, ModelConfig
from model.contract.errors import ConfigError
from model.contract.files.model_config import read_model_config
from model.contract.memory_plan import plan_memory
from model.contract.messages import AddRequest
from model.contract.sampling_params import SamplingParams
from model.quantization.at_load import NF4_CODES, quantize_at_load
from model.quantization.grouped import expand
from server.settings import Settings
from tests.support.engine_driver import LoadedModel, make_driver
from tests.support.gguf_files import shape_metadata, tiny_tensors, write_gguf
from tests.support.paths import GOLDEN

PROMPT = list(range(65, 85))
MODES = sorted(QUANTIZED_BITS)


def drawn(num_outputs: int, num_inputs: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_outputs, num_inputs, generator=torch.Generator().manual_seed(seed)) * 0.02


def quantized(weight: torch.Tensor, mode: str) -> GroupedWeight:
    found = quantize_at_load(weight, mode)
    assert found is not None
    return found


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def test_nf4_takes_the_nearest_level_of_the_largest_magnitude() -> None:
    weight = drawn(3, 128)
    weight[1, 64:] = 0
    found = quantized(weight, "nf4")
    for n in range(3):
        for g in range(2):
            group = weight[n, 64 * g : 64 * g + 64].tolist()
            largest = max(map(abs, group))
            assert float(found.scales[n, g]) == pytest.approx(largest)
            for k, number in enumerate(group):
                nearest = min(range(16), key=lambda i: abs(NF4_CODES[i] * largest - number))
                if largest:
                    assert int(found.values[n, 64 * g + k]) == nearest
    assert not expand(found, torch.float32)[1, 64:].any()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nf4_is_bitsandbytes(dtype: torch.dtype) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = drawn(256, 512).to(dtype)
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    found = quantized(weight, "nf4")
    values = torch.stack((packed.view(-1) >> 4, packed.view(-1) & 15), -1).view(256, 512)
    assert torch.equal(found.values, values) and torch.equal(found.scales, state.absmax.view(256, -1))
    assert torch.equal(state.code, torch.tensor(NF4_CODES))
    assert torch.equal(expand(found, dtype), functional.dequantize_4bit(packed, state))


# Of normally distributed weights: what each mode may lose, of their norm.
@pytest.mark.parametrize(("mode", "most"), [("int8", 0.007), ("int4", 0.09), ("nf4", 0.095)])
def test_weights_are_near(mode: str, most: float) -> None:
    weight = drawn(300, 1024)
    assert 0 < relative(expand(quantized(weight, mode), torch.float32), weight) < most


def test_int4_has_an_offset_where_that_is_nearer() -> None:
    levels = torch.randint(0, 16, (64, 128), generator=torch.Generator().manual_seed(1))
    levels[:, ::64] = 0  # each group has the lowest level, and so its scale is found
    assert quantized((levels - 8) * 0.5, "int4").offsets is None
    assert quantized(levels * 0.5 + 3, "int4").offsets is not None
    for weight in ((levels - 8) * 0.5, levels * 0.5 + 3):
        assert relative(expand(quantized(weight, "int4"), torch.float32), weight) < 1e-2


def test_int8_has_one_scale_an_output_where_that_is_as_near() -> None:
    assert quantized(drawn(64, 512), "int8").group_size == 128
    flat = torch.full((64, 512), 0.25)
    assert relative(expand(quantized(flat, "int8"), torch.float32), flat) == 0


@pytest.mark.parametrize("mode", MODES)
def test_odd_numbers_do_no_harm(mode: str) -> None:
    weight = drawn(64, 128)
    weight[0] = 0
    weight[1, :64] = 1e-38
    weight[2] = 6e4
    found = expand(quantized(weight, mode), torch.float32)
    assert found.isfinite().all() and not found[0].any()


def test_inputs_that_make_no_groups_stay_as_they_are() -> None:
    assert quantize_at_load(drawn(64, 96), "nf4") is None
    assert quantize_at_load(drawn(64, 96), "int4") is None
    assert quantized(drawn(64, 90), "int8").group_size == 90


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_permutes", [True, False])
def test_products_are_those_of_the_expanded_weight(
    mode: str, dtype: torch.dtype, has_permutes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_permutes:
        if mode != "nf4" or dtype != torch.float32:
            pytest.skip("only levels of float32 are looked up")
        monkeypatch.setattr(product_kernels, "has_permutes", lambda: False)
        product_kernels.load_kernels.cache_clear()
    weight, bias = quantized(drawn(128, 256), mode), drawn(1, 128, seed=5)[0]
    made = make_grouped_linear(weight, bias, dtype)
    assert made is not None
    for num_rows in (1, 2, 7):
        x = drawn(num_rows, 256, seed=num_rows).to(dtype)
        expected = x.double() @ expand(weight, torch.float32).double().t() + bias.double()
        # Levels of nf4 are rounded to bfloat16, and results are; torch's way rounds the whole weight.
        ours, torchs = (1e-6, 1e-6) if dtype == torch.float32 else (4e-3, 6e-3)
        assert relative(made[0](x), expected) < ours
        assert relative(TorchGroupedLinear(weight, bias, dtype)(x), expected) < torchs
    if not has_permutes:
        product_kernels.load_kernels.cache_clear()


def expanded_copy(source: Path, target: Path, mode: str) -> Path:
    """A checkpoint of the numbers that the quantised weights stand for."""
    shutil.copytree(source, target)
    weights = load_file(source / "model.safetensors")
    for name, weight in weights.items():
        if (".attn.c_" in name or ".mlp." in name) and name.endswith(".weight"):
            weights[name] = expand(quantized(weight, mode), torch.float32)
    save_file(weights, target / "model.safetensors")
    return target


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_is_what_its_quantised_weights_stand_for(mode: str, wide_checkpoint: Path, tmp_path: Path) -> None:
    packed = LoadedModel(wide_checkpoint, quantization=mode)
    numbers = LoadedModel(expanded_copy(wide_checkpoint, tmp_path / "numbers", mode))
    expected = numbers.logits(PROMPT)
    assert torch.allclose(packed.logits(PROMPT), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    ids = list(PROMPT)
    for _ in range(6):
        ids.append(int(numbers.logits(ids)[-1].argmax()))
        assert int(packed.logits(ids[:-1])[-1].argmax()) == ids[-1]
    plan = plan_memory(packed.config, dtype="float32", at_load=mode)
    assert packed.num_bytes == pytest.approx(plan.weights_bytes, rel=0.02)
    assert packed.num_bytes < 0.6 * numbers.num_bytes


@pytest.mark.parametrize("mode", MODES)
def test_memory_of_the_published_7b(mode: str) -> None:
    """Published peaks for a 7B: 10.1 GB in int8, 7.4 in NF4, activations and cache of 2048 tokens included."""
    config = ModelConfig(
        vocab_size=151936, hidden_size=4096, num_layers=32, num_heads=32, head_dim=128, intermediate_size=22016,
        seq_length=8192, rotary_base=10000.0, rotary_dim=128, layer_norm_epsilon=1e-6, use_dynamic_ntk=True,
        use_logn_attn=True, has_bias=False, declared_dtype="bfloat16", quantization=None,
    )  # fmt: skip
    published = {"int8": 10.1e9, "int4": 7.4e9, "nf4": 7.4e9}
    plan = plan_memory(config, at_load=mode)
    assert plan.weights_bytes < 0.93 * published[mode]
    assert mode in plan.summary() and plan.quantized(None).weights_bytes > 15e9


@pytest.mark.parametrize("mode", MODES)
def test_what_is_quantised_is_not_quantised_again(mode: str, tmp_path: Path) -> None:
    gguf = write_gguf(tmp_path / "m.gguf", shape_metadata(), tiny_tensors({}))
    for path, kind in ((GOLDEN / "gptq_int4", "GPTQ"), (gguf, "GGUF")):
        words = rf"--quantization {mode}: this checkpoint is quantised already \({kind}\)"
        with pytest.raises(ConfigError, match=words):
            LoadedModel(path, quantization=mode)
        with pytest.raises(ConfigError, match=words):
            plan_memory(read_model_config(path), at_load=mode)


def test_the_output_layer_alone(wide_checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "head"
    shutil.copytree(wide_checkpoint, target)
    weights = load_file(target / "model.safetensors")
    weights["lm_head.weight"] = expand(quantized(weights["lm_head.weight"], "int8"), torch.float32)
    save_file(weights, target / "model.safetensors")
    request = AddRequest(
        seq_ids=(0,), request_id="head", prompt_ids=PROMPT, sampling=SamplingParams(max_tokens=12, temperature=0.0)
    )
    replies = [
        make_driver(folder, lm_head_dtype=kind).run([request])[0].token_ids
        for folder, kind in ((wide_checkpoint, "int8"), (target, "auto"))
    ]
    assert replies[0] == replies[1]
    config = read_model_config(wide_checkpoint)
    plans = [plan_memory(config, dtype="bfloat16", lm_head_dtype=kind).weights_bytes for kind in ("auto", "int8")]
    assert 0.9 * config.vocab_size * config.hidden_size < plans[0] - plans[1] < config.vocab_size * config.hidden_size
    assert Settings(lm_head_dtype="int8").engine_config(Path("x")).lm_head_dtype == "int8"


def test_the_engine_is_told() -> None:
    for mode in ("none", *MODES):
        assert Settings(quantization=mode).engine_config(Path("x")).quantization == mode
