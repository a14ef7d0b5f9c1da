"""AWQ checkpoints: AutoAWQ's "gemm" layout written word by word, against the weights that it stands for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.contract.errors import CheckpointError
from model.contract.files.model_config import read_model_config
from model.contract.memory_plan import plan_memory
from model.quantization.awq import unpack_columns
from tests.support.engine_driver import LoadedModel

# Column of each nibble of a word, from the format's description.
ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
PROMPT = list(range(65, 85))


def words_of(values: torch.Tensor) -> torch.Tensor:
    """[R, 8 C] integers as [R, C] int32 words, in Python integers."""
    rows = []
    for row in values.tolist():
        words = []
        for first in range(0, len(row), 8):
            word = sum(row[first + column] << (4 * nibble) for nibble, column in enumerate(ORDER))
            words.append(word - (1 << 32) if word >= 1 << 31 else word)
        rows.append(words)
    return torch.tensor(rows, dtype=torch.int32)


def write_awq(source: Path, target: Path, group_size: int, settings: dict[str, Any] | None = None) -> tuple[Path, Path]:
    """An AWQ checkpoint of random integers, and the float32 one that it stands for."""
    awq, numbers = target / "awq", target / "numbers"
    for folder in (awq, numbers):
        shutil.copytree(source, folder)
    weights = load_file(source / "model.safetensors")
    stored: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(group_size)
    for name in list(weights):
        if (".attn.c_" not in name and ".mlp." not in name) or not name.endswith(".weight"):
            stored[name] = weights[name]
            continue
        num_outputs, num_inputs = weights[name].shape
        num_groups = num_inputs // group_size
        q = torch.randint(0, 16, (num_inputs, num_outputs), generator=generator)
        zeros = torch.randint(0, 16, (num_groups, num_outputs), generator=generator)
        scales = (torch.rand(num_groups, num_outputs, generator=generator) / 64).half()
        prefix = name.removesuffix(".weight")
        stored |= {f"{prefix}.qweight": words_of(q), f"{prefix}.qzeros": words_of(zeros), f"{prefix}.scales": scales}
        group = torch.arange(num_inputs) // group_size
        weights[name] = ((q - zeros[group]).float() * scales[group].float()).t().contiguous()
    save_file(weights, numbers / "model.safetensors")
    save_file(stored, awq / "model.safetensors")
    quantization = {"quant_method": "awq", "bits": 4, "group_size": group_size, "version": "gemm", "zero_point": True}
    raw = json.loads((awq / "config.json").read_text())
    (awq / "config.json").write_text(json.dumps({**raw, "quantization_config": quantization | (settings or {})}))
    return awq, numbers


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
