"""AWQ checkpoints: AutoAWQ's "gemm" layout written word by word, against the weights that it stands for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from model.contract.errors import CheckpointError
from model.contract.files.model_config import read_model_config
from model.contract.memory_plan import plan_memory
from model.quantization.awq import unpack_columns
from tests.support.engine_driver import LoadedModel
from tests.support.quantized_tensors import words_of, write_awq

PROMPT = list(range(65, 85))


def greedy(model: LoadedModel) -> list[int]:
    ids = list(PROMPT)
    for _ in range(6):
        ids.append(int(model.logits(ids)[-1].argmax()))
    return ids


def test_unpacking_is_the_description() -> None:
    values = torch.randint(0, 16, (3, 24), generator=torch.Generator().manual_seed(1))
    assert torch.equal(unpack_columns(words_of(values)), values.int())


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_an_awq_checkpoint_is_what_it_stands_for(group_size: int, wide_checkpoint: Path, tmp_path: Path) -> None:
    awq, numbers = (LoadedModel(folder) for folder in write_awq(wide_checkpoint, tmp_path, group_size))
    expected = numbers.logits(PROMPT)
    assert torch.allclose(awq.logits(PROMPT), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert greedy(awq) == greedy(numbers)
    assert awq.num_bytes < 0.7 * numbers.num_bytes
    assert (awq.config.quantization is not None) and awq.config.quantization.quant_method == "awq"
    assert plan_memory(awq.config).weights_bytes < plan_memory(numbers.config).weights_bytes


def test_settings_in_a_file_of_their_own(wide_checkpoint: Path, tmp_path: Path) -> None:
    awq, _ = write_awq(wide_checkpoint, tmp_path, 64)
    expected = LoadedModel(awq).logits(PROMPT)
    raw = json.loads((awq / "config.json").read_text())
    del raw["quantization_config"]
    (awq / "config.json").write_text(json.dumps(raw))
    settings = {"w_bit": 4, "q_group_size": 64, "zero_point": True, "version": "GEMM"}
    (awq / "quant_config.json").write_text(json.dumps(settings))
    assert torch.equal(LoadedModel(awq).logits(PROMPT), expected)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"version": "gemv"}, "AWQ in the version 'gemv' is not supported; 'gemm' is"),
        ({"version": "marlin"}, "version 'marlin'"),
        ({"bits": 3}, "AWQ with 3 bits is not supported; 4 are"),
        ({"bits": 8}, "AWQ with 8 bits is not supported; 4 are"),
        ({"group_size": 0}, "AWQ with group_size 0"),
        ({"group_size": "many"}, "incomplete or malformed"),
        ({"modules_to_not_convert": ["mlp"]}, "leaves mlp unquantised"),
        ({"quant_method": "bitsandbytes"}, "'bitsandbytes' is not supported; GPTQ and AWQ.*--quantization"),
        ({"quant_method": "hqq"}, "'hqq' is not supported; GPTQ and AWQ checkpoints are"),
        ({"group_size": 32}, r"has shape \[2, \d+\], but config.json asks for \[4, \d+\]"),
    ],
)
def test_what_does_not_load_is_named(
    settings: dict[str, Any], words: str, wide_checkpoint: Path, tmp_path: Path
) -> None:
    awq, _ = write_awq(wide_checkpoint, tmp_path, 64, settings)
    with pytest.raises(CheckpointError, match=words):
        LoadedModel(awq)


def test_the_tools_for_checkpoints_see_it(wide_checkpoint: Path, tmp_path: Path) -> None:
    awq, _ = write_awq(wide_checkpoint, tmp_path, 64)
    config = read_model_config(awq)
    assert "Int4" in plan_memory(config).summary()
