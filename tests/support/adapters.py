"""Random LoRA adapters in the layouts that peft writes, and what they stand for as whole weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from model.adapters.reader import read_adapter
from model.backends.weights import GPTQTensors
from model.contract.config import ModelConfig
from model.contract.files.linears import linear_shapes
from model.contract.files.model_config import read_model_config
from model.quantization.gptq import dequantize

PUBLISHED_TARGETS = ("c_attn", "c_proj", "w1", "w2")
QWEN2_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_QWEN2_PARTS = {
    "self_attn.q_proj": "attn.c_attn",
    "self_attn.k_proj": "attn.c_attn",
    "self_attn.v_proj": "attn.c_attn",
    "self_attn.o_proj": "attn.c_proj",
    "mlp.gate_proj": "mlp.w2",
    "mlp.up_proj": "mlp.w1",
    "mlp.down_proj": "mlp.c_proj",
}
_QUANTIZED = (".qweight", ".qzeros", ".scales", ".g_idx")
Tensors = dict[str, torch.Tensor]


def adapter_config(targets: Iterable[str] = PUBLISHED_TARGETS, *, rank: int = 8, **fields: Any) -> dict[str, Any]:
    """What peft writes beside the weights."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "Qwen/Qwen-7B-Chat",
        "r": rank,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "target_modules": list(targets),
        "modules_to_save": None,
        **fields,
    }


def factors(
    model: ModelConfig,
    targets: Iterable[str] = PUBLISHED_TARGETS,
    *,
    rank: int = 8,
    seed: int = 0,
    size: float = 0.05,
    layers: Iterable[int] | None = None,
) -> Tensors:
    """Random factors for all layers, under peft's names; both are random, where training begins with B = 0."""
    generator = torch.Generator().manual_seed(seed)
    chosen = set(targets)
    shapes = linear_shapes(model)
    found: Tensors = {}

    def add(name: str, num_inputs: int, num_outputs: int) -> None:
        name = f"base_model.model.{name}"
        found[f"{name}.lora_A.weight"] = torch.randn(rank, num_inputs, generator=generator) * size
        found[f"{name}.lora_B.weight"] = torch.randn(num_outputs, rank, generator=generator) * size

    for layer in range(model.num_layers) if layers is None else layers:
        for part, (num_inputs, num_outputs) in shapes.items():
            if part.rsplit(".", 1)[-1] in chosen:
                add(f"transformer.h.{layer}.{part}", num_inputs, num_outputs)
        for part, ours in _QWEN2_PARTS.items():
            if part.rsplit(".", 1)[-1] in chosen:
                num_inputs, num_outputs = shapes[ours]
                add(f"model.layers.{layer}.{part}", num_inputs, num_outputs // (3 if ours == "attn.c_attn" else 1))
    return found


def write_adapter(folder: Path, config: dict[str, Any], tensors: Tensors, *, bin_file: bool = False) -> Path:
    """Writes an adapter's folder and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))
    if bin_file:
        torch.save(tensors, folder / "adapter_model.bin")
    else:
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def random_adapter(folder: Path, model: ModelConfig, *, seed: int = 0, rank: int = 8, **fields: Any) -> Path:
    """Writes an adapter as the published script's defaults make one."""
    return write_adapter(folder, adapter_config(rank=rank, **fields), factors(model, rank=rank, seed=seed))


def merged_checkpoint(base: Path, adapter: Path, out: Path) -> Path:
    """Writes an unquantised float32 checkpoint with an adapter's updates added to its weights, and returns it."""
    model = read_model_config(base)
    stored = load_file(base / "model.safetensors")
    weights = {name: value.float() for name, value in stored.items() if not name.endswith(_QUANTIZED)}
    for name, qweight in stored.items():
        if name.endswith(".qweight"):
            linear = name.removesuffix(".qweight")
            weights[f"{linear}.weight"] = _expand(linear, qweight, stored, model)
            if not model.has_bias and not linear.endswith("c_attn"):
                assert not weights.pop(f"{linear}.bias").any()
    read = read_adapter(adapter, model)
    for module, updates in read.updates.items():
        for update in updates:
            weights[f"{module}.weight"][update.outputs] += update.delta()
    for module, weight in read.saved.items():
        weights[f"{module}.weight"] = weight.float()
    shutil.copytree(base, out, ignore=shutil.ignore_patterns("model.safetensors"))
    config = json.loads((base / "config.json").read_text())
    config.pop("quantization_config", None)
    (out / "config.json").write_text(json.dumps({**config, "fp32": True, "bf16": False, "fp16": False}))
    save_file({name: value.contiguous() for name, value in weights.items()}, out / "model.safetensors")
    return out


def _expand(linear: str, qweight: torch.Tensor, stored: Tensors, model: ModelConfig) -> torch.Tensor:
    assert model.quantization is not None
    qzeros, scales = stored[f"{linear}.qzeros"], stored[f"{linear}.scales"]
    bits = model.quantization.bits
    groups = stored[f"{linear}.g_idx"].to(torch.int64)
    return dequantize(GPTQTensors(qweight, qzeros, scales, groups, bits), torch.float32)
