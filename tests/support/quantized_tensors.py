"""Quantised weights as the published formats store them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

# Column of each nibble of a word, from the format's description.
ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


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


def pack_rows(values: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of `unpack_rows`, word by word in Python integers."""
    per_word = 32 // bits
    rows = []
    for low in range(0, values.shape[0], per_word):
        word = torch.zeros(values.shape[1], dtype=torch.int64)
        for place in range(per_word):
            word |= values[low + place].to(torch.int64) << (place * bits)
        rows.append(torch.where(word >= 1 << 31, word - (1 << 32), word).to(torch.int32))
    return torch.stack(rows)
