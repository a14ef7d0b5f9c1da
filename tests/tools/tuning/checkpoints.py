"""Checkpoints that the tests of this folder start from, and what transformers says of them."""

from __future__ import annotations

import base64
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from model.contract.files.vocabulary import read_ranks
from tests.support.paths import ROOT
from tools.convert.options import ConvertOptions
from tools.convert.run import convert

GOLDEN = ROOT / "tests" / "data" / "golden"
DEMO = ROOT / "demo" / "checkpoint"
FOLDERS = sorted(path.name for path in GOLDEN.iterdir())
TEXTS = json.loads((ROOT / "tests" / "data" / "text" / "tokenizer.json").read_text())["cases"]


def real_ranks() -> dict[bytes, int]:
    """The published vocabulary: a file of the dashscope package, which is not imported."""
    spec = importlib.util.find_spec("dashscope")
    assert spec is not None and spec.submodule_search_locations
    return read_ranks(Path(spec.submodule_search_locations[0]) / "resources" / "qwen.tiktoken")


def converted(source: Path, target: Path, to: str = "qwen2", dtype: str = "auto") -> Path:
    convert(ConvertOptions(source=source, target=target, to=to, dtype=dtype))
    return target


def with_vocabulary(source: Path, target: Path, ranks: dict[bytes, int]) -> Path:
    """A copy of a checkpoint with another vocabulary; its weights need not fit."""
    shutil.copytree(source, target)
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()]
    (target / "qwen.tiktoken").write_text("".join(lines))
    return target


def theirs(folder: Path) -> Any:
    """The model as transformers loads it, in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
