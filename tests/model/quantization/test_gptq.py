"""GPTQ layers: what the packed numbers mean, and what a checkpoint may leave out. Whole models: test_golden."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.backends.torch_backend import TorchBackend
from model.backends.weights import GPTQTensors
from model.contract.config import QuantizationConfig
from model.contract.errors import CheckpointError
from model.contract.files.model_config import read_model_config
from model.quantization.gptq import GPTQLinear, dequantize
from model.quantization.packing import unpack_rows
from tests.support.engine_driver import LoadedModel
from tests.support.paths import GOLDEN
from tests.support.quantized_tensors import pack_rows


@pytest.mark.parametrize("bits", [4, 8])
def test_unpacking_inverts_packing(bits: int) -> None:
    values = torch.randint(0, 1 << bits, (64, 5), generator=torch.Generator().manual_seed(bits))
    assert torch.equal(unpack_rows(pack_rows(values, bits), bits).to(torch.int64), values)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("num_groups", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dequantising_is_the_formula(bits: int, num_groups: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(num_groups)
    num_inputs, num_outputs = 64, 16
    q = torch.randint(0, 1 << bits, (num_inputs, num_outputs), generator=generator)
    zeros = torch.randint(1, 1 << bits, (num_groups, num_outputs), generator=generator)
    scales = torch.rand(num_groups, num_outputs, generator=generator).half()
    groups = torch.randint(0, num_groups, (num_inputs,), generator=generator)
    packed_zeros = pack_rows((zeros - 1).t(), bits).t().contiguous()
    weight = dequantize(GPTQTensors(pack_rows(q, bits), packed_zeros, scales, groups, bits), dtype)
    for n in range(num_outputs):
        for k in range(0, num_inputs, 7):
            exact = float(q[k, n] - zeros[groups[k], n]) * float(scales[groups[k], n])
            assert weight[n, k] == torch.tensor(exact).to(dtype)


def copy_of(folder: str, target: Path, *, without: tuple[str, ...]) -> Path:
    shutil.copytree(GOLDEN / folder, target)
    tensors = load_file(target / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(without)}
    assert len(kept) < len(tensors)
    save_file(kept, str(target / "model.safetensors"))
    return target


def test_g_idx_may_be_absent_without_act_order(tmp_path: Path) -> None:
    ids = list(range(40))
    whole = LoadedModel(GOLDEN / "gptq_int4").logits(ids)
    assert torch.equal(LoadedModel(copy_of("gptq_int4", tmp_path / "c", without=(".g_idx",))).logits(ids), whole)


def test_a_bias_of_zeros_may_be_absent(tmp_path: Path) -> None:
    names = (".mlp.w1.bias", ".mlp.w2.bias", "c_proj.bias")
    assert not any(
        t.any() for n, t in load_file(GOLDEN / "gptq_int8" / "model.safetensors").items() if n.endswith(names)
    )
    whole = LoadedModel(GOLDEN / "gptq_int8").logits([1, 2, 3])
    assert torch.equal(LoadedModel(copy_of("gptq_int8", tmp_path / "c", without=names)).logits([1, 2, 3]), whole)


def test_other_tensors_are_missed(tmp_path: Path) -> None:
    folder = copy_of("gptq_int4", tmp_path / "c", without=("h.1.mlp.w1.scales",))
    with pytest.raises(CheckpointError, match=r"missing tensors: transformer\.h\.1\.mlp\.w1\.scales"):
        LoadedModel(folder)


def test_quantize_config_in_a_file_of_its_own(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "gptq_int4", tmp_path / "c")
    path = tmp_path / "c" / "config.json"
    config = json.loads(path.read_text())
    (tmp_path / "c" / "quantize_config.json").write_text(json.dumps(config.pop("quantization_config")))
    path.write_text(json.dumps(config))
    assert torch.equal(LoadedModel(tmp_path / "c").logits([5, 6]), LoadedModel(GOLDEN / "gptq_int4").logits([5, 6]))


@pytest.mark.parametrize("folder", ["gptq_int4", "gptq_int8", "gptq_int4_asym_desc_act"])
@pytest.mark.parametrize("where", ["config.json", "quantize_config.json"])
def test_zeros_of_the_second_layout(tmp_path: Path, folder: str, where: str) -> None:
    """As GPTQModel writes them: nothing but a word of the configuration tells."""
    shutil.copytree(GOLDEN / folder, tmp_path / "c")
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    bits = config["quantization_config"]["bits"]
    path = tmp_path / "c" / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith(".qzeros")]:
        zeros = unpack_rows(tensors[name].t().contiguous(), bits) + 1
        assert int(zeros.max()) < 1 << bits
        tensors[name] = pack_rows(zeros, bits).t().contiguous()
    save_file(tensors, str(path))
    if where == "config.json":
        config["quantization_config"]["checkpoint_format"] = "gptq_v2"
    else:
        own = {**config.pop("quantization_config"), "format": "gptq_v2"}
        (tmp_path / "c" / where).write_text(json.dumps(own))
    (tmp_path / "c" / "config.json").write_text(json.dumps(config))
    assert torch.equal(LoadedModel(tmp_path / "c").logits([5, 6]), LoadedModel(GOLDEN / folder).logits([5, 6]))


def test_g_idx_beyond_the_groups_is_refused(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "gptq_int4_asym_desc_act", tmp_path / "c")
    path = tmp_path / "c" / "model.safetensors"
    tensors = load_file(path)
    next(t for n, t in tensors.items() if n.endswith(".g_idx"))[3] = 99
    save_file(tensors, str(path))
    with pytest.raises(CheckpointError, match="g_idx names groups beyond"):
        LoadedModel(tmp_path / "c")


def test_act_order_without_its_groups_is_refused(tmp_path: Path) -> None:
    """Groups in the order of the inputs would be other weights, and nobody would see it."""
    shutil.copytree(GOLDEN / "gptq_int4_asym_desc_act", tmp_path / "c")
    path = tmp_path / "c" / "model.safetensors"
    save_file({n: t for n, t in load_file(path).items() if not n.endswith(".g_idx")}, str(path))
    with pytest.raises(CheckpointError, match="g_idx is missing"):
        LoadedModel(tmp_path / "c")


@pytest.mark.parametrize(("bits", "group_size"), [(3, 128), (2, 64), (4, 0), (4, -2)])
def test_what_is_not_supported_is_named(bits: int, group_size: int, tmp_path: Path) -> None:
    raw = json.loads((GOLDEN / "gptq_int4" / "config.json").read_text())
    raw["quantization_config"] |= {"bits": bits, "group_size": group_size}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="not supported"):
        read_model_config(tmp_path)


def test_shapes_that_do_not_divide_are_refused() -> None:
    quantization = QuantizationConfig(quant_method="gptq", bits=4, group_size=32)
    with pytest.raises(CheckpointError, match="does not divide"):
        GPTQLinear(60, 64, quantization=quantization, backend=TorchBackend(torch.device("cpu")), dtype=torch.float32)
