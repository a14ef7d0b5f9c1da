"""`qwen-server merge`: a merged checkpoint computes what peft computes with the adapter beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.contract.errors import AdapterError, CheckpointError
from model.contract.files.model_config import read_model_config
from tests.support.engine_driver import LoadedModel
from tests.tools.tuning.checkpoints import GOLDEN, converted, theirs
from tools.convert.names import qwen2_targets
from tools.merge.options import MergeOptions
from tools.merge.run import main, merge

IDS = [(11 * n) % 250 for n in range(60)]
PUBLISHED = ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj")


def merged(source: Path, adapter: Path, target: Path, dtype: str = "float32") -> Path:
    merge(MergeOptions(source=source, adapter=adapter, target=target, dtype=dtype))
    return target


def published_adapter(folder: Path, source: Path, rank: int = 3, alpha: int = 6) -> dict[str, torch.Tensor]:
    """An adapter as peft writes it beside the published script, of random numbers; returns its tensors."""
    config = read_model_config(source)
    generator = torch.Generator().manual_seed(5)
    inner = config.intermediate_size // 2
    outputs = {"attn.c_attn": 3 * config.hidden_size, "mlp.w1": inner, "mlp.w2": inner}
    tensors = {"base_model.model.lm_head.weight": torch.randn(config.vocab_size, config.hidden_size) / 9}
    for layer in range(config.num_layers):
        for name in PUBLISHED:
            prefix = f"base_model.model.transformer.h.{layer}.{name}"
            inputs = inner if name == "mlp.c_proj" else config.hidden_size
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) / 9
            shape = (outputs.get(name, config.hidden_size), rank)
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(*shape, generator=generator) / 9
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "bias": "none", "modules_to_save": ["lm_head"]}
    settings["target_modules"] = ["c_attn", "c_proj", "w1", "w2"]
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "adapter_model.safetensors")
    return tensors


# peft asks transformers for what it has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("name", ["plain_theta1e6_fp32", "gptq_int4_asym_desc_act"])
def test_what_peft_trains_on_the_converted_layout(name: str, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = theirs(converted(GOLDEN / name, tmp_path / "qwen2", dtype="float32"))
    targets = [target for published in ("c_attn", "c_proj", "w1", "w2") for target in qwen2_targets(published)]
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 9
    model.save_pretrained(tmp_path / "adapter")
    ours = LoadedModel(merged(GOLDEN / name, tmp_path / "adapter", tmp_path / "merged"))
    with torch.no_grad():
        expected = model.eval()(torch.tensor([IDS])).logits[0]
    assert (ours.logits(IDS) - expected).abs().max() < 1e-4
    assert (ours.logits(IDS) - LoadedModel(GOLDEN / name).logits(IDS)).abs().max() > 0.1
    assert ours.config.seq_length == read_model_config(GOLDEN / name).seq_length
    assert ours.config.quantization is None


def test_the_published_names_and_whole_weights(tmp_path: Path) -> None:
    source = GOLDEN / "first_release_names_bf16"
    adapter = published_adapter(tmp_path / "adapter", source)
    folder = merged(source, tmp_path / "adapter", tmp_path / "merged", "auto")
    before, after = load_file(source / "model.safetensors"), load_file(folder / "model.safetensors")
    assert torch.equal(after["lm_head.weight"], adapter["base_model.model.lm_head.weight"].bfloat16())
    assert torch.equal(after["transformer.wte.weight"], before["transformer.wte.weight"])
    for name in PUBLISHED:
        stored = f"transformer.h.2.{name}"
        a, b = (adapter[f"base_model.model.{stored}.lora_{factor}.weight"] for factor in "AB")
        expected = (before[f"{stored}.weight"].float() + 2 * b @ a).bfloat16()
        assert torch.allclose(after[f"{stored}.weight"].float(), expected.float(), rtol=1e-2)
    assert read_model_config(folder).declared_dtype == "bfloat16"
    assert (folder / "qwen.tiktoken").exists() and (folder / "generation_config.json").exists()


def test_refusals_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = GOLDEN / "gptq_int8"
    published_adapter(tmp_path / "other", GOLDEN / "plain_theta1e6_fp32")
    monkeypatch.setattr("sys.argv", ["merge", str(source), str(tmp_path / "other"), str(tmp_path / "never")])
    assert main() == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "numbers are not those of the model" in error
    with pytest.raises(AdapterError, match=r"holds no adapter_config\.json"):
        merged(source, source, tmp_path / "never")
    published_adapter(tmp_path / "adapter", source)
    shutil.copytree(source, tmp_path / "biased")
    tensors = load_file(source / "model.safetensors")
    tensors["transformer.h.0.attn.c_proj.bias"][0] = 1.0
    save_file(tensors, tmp_path / "biased" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"c_proj\.bias' is not zero"):
        merged(tmp_path / "biased", tmp_path / "adapter", tmp_path / "never")
    assert not list(tmp_path.glob("*never*"))
