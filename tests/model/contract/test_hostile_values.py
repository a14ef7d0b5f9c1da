"""Any value in any place of a checkpoint's JSON: one sentence, or a config to reckon with; never a traceback."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from model.contract.errors import StartupError
from model.contract.files.adapter_config import AdapterConfig
from model.contract.files.json_file import read_generation_config, read_json
from model.contract.files.model_config import read_model_config
from model.contract.files.safetensors_header import read_header
from model.contract.files.weight_files import find_weight_files, rows_of_embedding
from model.contract.memory_plan import plan_memory
from server.conversion.defaults import GenerationDefaults
from tests.support.published_config import PUBLISHED_CONFIG
from tools.convert.qwen2_config import Qwen2Source

HUGE = 10**400  # a whole number in JSON, and no float
VALUES: list[Any] = [
    None, -1, 0, 3, HUGE, -HUGE, 1.5, math.nan, math.inf, True, False, "", "x", "../x", "9" * 300, "a\x00", [], [None],
    ["x"], [3], {}, {"x": 3}, [[[[]]]], {"quant_method": ["gptq"]},
]  # fmt: skip
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "checkpoint_format": "gptq"}
AWQ = {"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "zero_point": True, "version": "gemm",
       "modules_to_not_convert": None}  # fmt: skip
ADAPTER = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["c_attn"], "rank_pattern": {"w1": 4},
           "alpha_pattern": {}, "use_rslora": False, "modules_to_save": None, "bias": "none", "init_lora_weights": True,
           "base_model_name_or_path": "x"}  # fmt: skip
TENSOR = {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}
QWEN2 = {"model_type": "qwen2", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "head_dim": 16,
         "intermediate_size": 128, "max_position_embeddings": 64, "rope_scaling": None, "rope_parameters": None,
         "first_generation_qwen": {}, "eos_token_id": 3}  # fmt: skip
GENERATION = {"chat_format": "chatml", "eos_token_id": 3, "stop_words_ids": [[3]], "top_p": 0.5, "top_k": 0,
              "max_new_tokens": 3, "do_sample": True}  # fmt: skip


def read_config(folder: Path) -> None:
    config = read_model_config(folder)
    plan = plan_memory(config)
    assert plan.summary() and plan.peak_bytes(1, 10, 10) > 0
    assert config.rope_alpha(10**6) >= 1


def read_adapter(folder: Path) -> None:
    config = AdapterConfig.from_folder(folder)
    assert 0 < config.rank_of("transformer.h.0.mlp.w1") <= config.max_rank
    assert config.scaling_of("transformer.h.0.attn.c_attn") > 0


def read_index(folder: Path) -> None:
    assert find_weight_files(folder)


def read_tensors(folder: Path) -> None:
    rows = rows_of_embedding(folder)  # whoever loads the file says what is wrong with it
    assert rows is None or rows >= 0
    read_header(folder / "model.safetensors")


def read_qwen2(folder: Path) -> None:
    source = Qwen2Source(folder)
    json.dumps(source.published(vocab_size=5, dtype="float32"))
    source.published_generation({"endoftext": 1, "im_end": 2})


def config_file(fields: dict[str, Any]) -> dict[str, Any]:
    return {"config.json": fields}


def quantization(fields: dict[str, Any]) -> dict[str, Any]:
    return config_file(PUBLISHED_CONFIG | {"quantization_config": fields})


CASES: dict[str, tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]], Callable[[Path], object]]] = {
    "config": (PUBLISHED_CONFIG | {"window_attn": 0, "architectures": [], "visual": None}, config_file, read_config),
    "gptq": (GPTQ, quantization, read_config),
    "awq": (AWQ, quantization, read_config),
    "whole": ({"quantization_config": GPTQ}, lambda fields: config_file(PUBLISHED_CONFIG | fields), read_config),
    "adapter": (ADAPTER, lambda fields: {"adapter_config.json": fields}, read_adapter),
    "index": ({"weight_map": {}}, lambda fields: {"model.safetensors.index.json": fields}, read_index),
    "shards": (
        {"x": "y"}, lambda fields: {"model.safetensors.index.json": {"weight_map": fields}}, read_index
    ),
    "tensor": (TENSOR, lambda fields: {"model.safetensors": {"transformer.wte.weight": fields}}, read_tensors),
    "header": ({"x": TENSOR}, lambda fields: {"model.safetensors": fields}, read_tensors),
    "qwen2": (QWEN2, config_file, read_qwen2),
    "generation": (GENERATION, lambda fields: {"generation_config.json": fields}, GenerationDefaults.from_folder),
}  # fmt: skip


def hostile(fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name in fields:
        yield from ({**fields, name: value} for value in VALUES)


@pytest.mark.parametrize("case", CASES)
def test_any_value_in_any_place(case: str, tmp_path: Path) -> None:
    fields, files, read = CASES[case]
    for changed in hostile(fields):
        for name, content in files(changed).items():
            text = json.dumps(content).encode()
            is_header = name == "model.safetensors"
            (tmp_path / name).write_bytes(struct.pack("<Q", len(text)) + text + bytes(4) if is_header else text)
        try:
            read(tmp_path)
        except StartupError as error:
            assert "\n" not in str(error) and len(str(error)) < 1100
        except Exception as error:
            raise AssertionError(f"{case}: {changed}") from error


@pytest.mark.parametrize("read", [read_json, lambda path: read_generation_config(path.parent)])
@pytest.mark.parametrize("depth", [65, 900, 100_000])
def test_nothing_is_nested_deep(depth: int, read: Callable[[Path], object], tmp_path: Path) -> None:
    """What is read may be quoted or written again, which recurses."""
    path = tmp_path / "generation_config.json"
    path.write_text('{"x":' + "[" * depth + "]" * depth + "}")
    with pytest.raises(StartupError, match=r"nested more than 64 deep|is not valid JSON"):
        read(path)


def test_a_config_of_a_megabyte_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED_CONFIG | {"x": [[]] * 400_000}))
    with pytest.raises(StartupError, match="is larger than 1,048,576 bytes"):
        read_model_config(tmp_path)


@pytest.mark.parametrize("name", ["x" * 300, "x" * 5000, "a\x00b", "..", ""])
def test_a_step_of_deepspeed_that_cannot_be(name: str, tmp_path: Path) -> None:
    (tmp_path / "latest").write_text(name)
    with pytest.raises(StartupError, match="no weights found"):
        find_weight_files(tmp_path)


@pytest.mark.parametrize("flag", ["use_dynamic_ntk", "use_logn_attn", "no_bias", "bf16", "tie_word_embeddings"])
def test_a_flag_is_true_or_false(flag: str, tmp_path: Path) -> None:
    """Python would take any text for true, "false" too."""
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED_CONFIG | {flag: "false"}))
    with pytest.raises(StartupError, match=f"'{flag}' must be true or false, not 'false'"):
        read_model_config(tmp_path)
