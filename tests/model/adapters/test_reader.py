"""What adapters hold is read as peft means it; what is not served is refused by name, in one sentence."""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from model.adapters.reader import Adapter, read_adapter
from model.contract.config import ModelConfig
from model.contract.errors import AdapterError
from model.contract.files.model_config import read_model_config
from tests.support.adapters import (
    PUBLISHED_TARGETS,
    QWEN2_TARGETS,
    Tensors,
    adapter_config,
    factors,
    random_adapter,
    write_adapter,
)

C_ATTN = "base_model.model.transformer.h.1.attn.c_attn"


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> ModelConfig:
    return read_model_config(tiny_checkpoint)


def delta(adapter: Adapter, module: str, num_outputs: int) -> torch.Tensor:
    updates = adapter.updates[module]
    out = torch.zeros(num_outputs, updates[0].a.shape[1])
    for update in updates:
        out[update.outputs] += update.delta()
    return out


def product(tensors: Tensors, name: str) -> torch.Tensor:
    return tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]


@pytest.mark.parametrize("bin_file", [False, True], ids=["safetensors", "bin"])
def test_published_layout(tmp_path: Path, model: ModelConfig, bin_file: bool) -> None:
    tensors = factors(model)
    adapter = read_adapter(write_adapter(tmp_path, adapter_config(), tensors, bin_file=bin_file), model)
    assert len(adapter.updates) == 5 * model.num_layers
    expected = product(tensors, C_ATTN) * 16 / 8
    torch.testing.assert_close(delta(adapter, "transformer.h.1.attn.c_attn", 3 * model.hidden_size), expected)


def test_qwen2_layout_is_folded_into_fused_rows(tmp_path: Path, model: ModelConfig) -> None:
    tensors = factors(model, QWEN2_TARGETS)
    adapter = read_adapter(write_adapter(tmp_path, adapter_config(QWEN2_TARGETS), tensors), model)
    layer = "base_model.model.model.layers.1"
    rows = [product(tensors, f"{layer}.self_attn.{part}") * 2 for part in ("q_proj", "k_proj", "v_proj")]
    torch.testing.assert_close(delta(adapter, "transformer.h.1.attn.c_attn", 3 * model.hidden_size), torch.cat(rows))
    inner = model.intermediate_size // 2
    for ours, theirs, num_outputs in (("w1", "up_proj", inner), ("w2", "gate_proj", inner),
                                      ("c_proj", "down_proj", model.hidden_size)):  # fmt: skip
        expected = product(tensors, f"{layer}.mlp.{theirs}") * 2
        torch.testing.assert_close(delta(adapter, f"transformer.h.1.mlp.{ours}", num_outputs), expected)


def test_keys_alone_leave_queries_and_values(tmp_path: Path, model: ModelConfig) -> None:
    tensors = factors(model, ["k_proj"])
    adapter = read_adapter(write_adapter(tmp_path, adapter_config(["k_proj"]), tensors), model)
    hidden = model.hidden_size
    found = delta(adapter, "transformer.h.0.attn.c_attn", 3 * hidden)
    assert found[hidden : 2 * hidden].any()
    assert not found[:hidden].any() and not found[2 * hidden :].any()


def test_whole_embedding_and_head(tmp_path: Path, model: ModelConfig) -> None:
    """The published script trains both where a base model learns ChatML; files of DeepSpeed keep peft's inner names."""
    shape = (model.vocab_size, model.hidden_size)
    wte, head = torch.randn(shape), torch.randn(shape)
    tensors = {
        **factors(model),
        "base_model.model.transformer.wte.modules_to_save.default.weight": wte,
        "base_model.model.transformer.wte.original_module.weight": torch.zeros(shape),
        "base_model.model.lm_head.weight": head,
    }
    config = adapter_config(modules_to_save=["wte", "lm_head"])
    adapter = read_adapter(write_adapter(tmp_path, config, tensors), model)
    assert adapter.saved.keys() == {"transformer.wte", "lm_head"}
    assert torch.equal(adapter.saved["transformer.wte"], wte)
    assert torch.equal(adapter.saved["lm_head"], head)


@pytest.mark.parametrize(
    ("fields", "rank", "scaling"),
    [
        ({}, 8, 2.0),
        ({"use_rslora": True}, 8, 16 / math.sqrt(8)),
        ({"rank_pattern": {"c_attn": 4}}, 4, 4.0),
        ({"rank_pattern": {"transformer.h.1.attn.c_attn": 4, "c_attn": 8}}, 4, 4.0),
        ({"rank_pattern": {"h.1.attn": 4}}, 8, 2.0),  # a name ends with its pattern
        ({"rank_pattern": {r"h\.[01]\.attn\.c_\w+": 4}, "alpha_pattern": {r"h\.1\.attn\.c_attn": 32}}, 4, 8.0),
        ({"alpha_pattern": {"h.1.attn.c_attn": 3}, "use_rslora": True}, 8, 3 / math.sqrt(8)),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_scaling_and_patterns(
    tmp_path: Path, model: ModelConfig, fields: dict[str, Any], rank: int, scaling: float
) -> None:
    tensors = factors(model, ["c_attn"], rank=rank, layers=[1])
    adapter = read_adapter(write_adapter(tmp_path, adapter_config(["c_attn"], **fields), tensors), model)
    (update,) = adapter.updates["transformer.h.1.attn.c_attn"]
    assert (len(update.a), update.scaling) == (rank, pytest.approx(scaling))


def _dropping(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def _with(name: str, value: torch.Tensor) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: value}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"peft_type": "LOHA"}, "'LOHA'"),
        ({"target_modules": ["c_attn", "query_key_value"]}, "'query_key_value'"),
        ({"modules_to_save": ["ln_f"]}, "'ln_f'"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa_niter_16"),
        ({"use_something_new": True}, "use_something_new"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"r": 0}, "r must be a positive"),
        ({"r": "8"}, "r must be a positive"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be"),
        ({"rank_pattern": {"(a+)+": 4}}, "too long to match"),
        ({"rank_pattern": {".?" * 40 + "x": 4}}, "too long to match"),
        ({"rank_pattern": {r"(.|\w)" * 30 + "x": 4}}, "too long to match"),
        ({"rank_pattern": {"[": 4}}, "no regular expression"),
        ({"rank_pattern": {"a{" + "9" * 99 + "}": 4}}, "no regular expression"),
        ({"alpha_pattern": {f"x{i}.*": 4 for i in range(99)}}, "more than 16"),
        ({"base_model_name_or_path": "Qwen/Qwen1.5-1.8B-Chat"}, "Qwen1.5-1.8B-Chat"),
        ({"r": 4096}, "--max-lora-rank"),
        ({"r": 16}, "gives it rank 16"),
        ({"target_modules": [*PUBLISHED_TARGETS, "q_proj"]}, "no weights of 'q_proj'"),
        ({"modules_to_save": ["wte"]}, "no weights of 'transformer.wte'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_other_kinds_are_refused(tmp_path: Path, model: ModelConfig, fields: dict[str, Any], told: str) -> None:
    random_adapter(tmp_path, model)
    write_adapter(tmp_path, adapter_config(**fields), factors(model))
    assert told in refusal(tmp_path, model)


def refusal(folder: Path, model: ModelConfig) -> str:
    with pytest.raises(AdapterError) as error:
        read_adapter(folder, model, max_rank=64)
    message = str(error.value)
    assert "\n" not in message and str(folder) in message
    return message


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_dropping(f"{C_ATTN}.lora_B.weight"), "lora_B of 'transformer.h.1.attn.c_attn' is missing"),
        (_with(f"{C_ATTN}.lora_A.weight", torch.full((8, 32), torch.nan)), "no numbers"),
        (_with(f"{C_ATTN}.lora_A.weight", torch.full((8, 32), torch.inf)), "no numbers"),
        (_with(f"{C_ATTN}.lora_A.weight", torch.zeros(8, 32, dtype=torch.int32)), "is int32"),
        (_with(f"{C_ATTN}.lora_A.weight", torch.zeros(8, 64)), "'Qwen/Qwen-7B-Chat'"),
        (_with(f"{C_ATTN}.lora_A.weight", torch.zeros(0)), "has shape [0]"),
        (_with(C_ATTN.replace("h.1", "h.9") + ".lora_A.weight", torch.zeros(8, 32)), "layer 9"),
        (_with("base_model.model.transformer.h.0.ln_1.lora_A.weight", torch.zeros(8, 32)), "ln_1"),
        (_with(f"{C_ATTN}.lora_magnitude_vector.weight", torch.zeros(96)), "DoRA"),
        (_with("base_model.model.transformer.wte.weight", torch.zeros(8, 32)), "must have [300, 32]"),
        (_with("base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight", torch.zeros(8, 32)), "lora_B of"),
        (lambda tensors: {}, "no weights of 'c_attn'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_odd_weights_are_refused(
    tmp_path: Path, model: ModelConfig, change: Callable[[Tensors], Tensors], told: str
) -> None:
    write_adapter(tmp_path, adapter_config(), change(factors(model)))
    assert told in refusal(tmp_path, model)


def test_rows_that_are_trained_twice(tmp_path: Path, model: ModelConfig) -> None:
    tensors = factors(model, ["c_attn", "q_proj"])
    write_adapter(tmp_path, adapter_config(["c_attn", "q_proj"]), tensors)
    assert "trained twice" in refusal(tmp_path, model)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("executed",))


def _truncate(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"x": _Evil()}))


def _fifo(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    os.mkfifo(folder / "adapter_model.safetensors")


def _in_a_checkpoint(folder: Path) -> None:
    (folder / "checkpoint-9").mkdir()
    (folder / "checkpoint-20").mkdir()
    (folder / "adapter_config.json").rename(folder / "checkpoint-20" / "adapter_config.json")


def _write(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


def _huge(folder: Path) -> None:
    with (folder / "adapter_model.safetensors").open("ab") as file:
        file.truncate(1 << 40)  # all of it a hole


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (_truncate, "truncated"),
        (_pickle, "not a file of weights only"),
        (_fifo, "holds neither"),
        (_in_a_checkpoint, "checkpoint-20 is one"),
        (_huge, "at most"),
        (_write("adapter_config.json", "[]"), "JSON object"),
        (_write("adapter_config.json", "{" * 5000), "not valid JSON"),
        (_write("adapter_config.json", " " * (2 << 20)), "is larger than"),
        (_write("adapter_model.safetensors", "nonsense"), "safetensors"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_broken_files(
    tmp_path: Path, model: ModelConfig, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Path], None], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = random_adapter(tmp_path / "adapter", model)
    harm(folder)
    assert told in refusal(folder, model)
    assert not (tmp_path / "executed").exists()


def test_tensors_of_other_widths_are_read(tmp_path: Path, model: ModelConfig) -> None:
    tensors = factors(model)
    write_adapter(tmp_path, adapter_config(), {})
    save_file({name: value.bfloat16() for name, value in tensors.items()}, tmp_path / "adapter_model.safetensors")
    adapter = read_adapter(tmp_path, model)
    expected = product(tensors, C_ATTN) * 2
    torch.testing.assert_close(
        delta(adapter, "transformer.h.1.attn.c_attn", 3 * model.hidden_size), expected, atol=2e-3, rtol=2e-2
    )
