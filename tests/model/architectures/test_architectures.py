"""Which model a checkpoint is built as, and what it calls the stored tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from model import architectures
from model.architectures.causal_lm import CausalLM
from model.backends.torch_backend import TorchBackend
from model.contract.config import PUBLISHED_CLASS
from model.contract.files.model_config import read_model_config
from model.quantization import linear_maker
from tests.support.engine_driver import LoadedModel


class Other(CausalLM):
    def __init__(self, *parts: Any) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("named", "expected"),
    [(["Other"], "Other"), ([PUBLISHED_CLASS], PUBLISHED_CLASS), (["SomebodysFork"], PUBLISHED_CLASS),
     ([], PUBLISHED_CLASS), (None, PUBLISHED_CLASS), ("Other", PUBLISHED_CLASS)],
)  # fmt: skip
def test_the_registered_class_that_the_file_names(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: Any, expected: str
) -> None:
    for path in tiny_checkpoint.iterdir():
        (tmp_path / path.name).symlink_to(path)
    raw = json.loads((tiny_checkpoint / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(raw | {"architectures": named}))
    monkeypatch.setitem(architectures.ARCHITECTURES, "Other", Other)
    config, backend = read_model_config(tmp_path), TorchBackend(torch.device("cpu"))
    make_linear = linear_maker(config, backend, torch.float32)
    model = architectures.make_model(config, make_linear, backend, torch.float32)
    assert isinstance(model, architectures.ARCHITECTURES[expected])


def test_the_heads_are_stated(tiny_checkpoint: Path) -> None:
    config = read_model_config(tiny_checkpoint)
    shape = config.attention_shape
    assert shape.num_kv_heads == shape.num_heads
    assert shape.qkv_sizes == (config.hidden_size,) * 3
    assert LoadedModel(tiny_checkpoint).model.parameter_name("transformer.h.0.attn.masked_bias") is None
