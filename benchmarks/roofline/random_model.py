"""An engine of any published shape without a checkpoint: random weights, made on the device."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from demo import random_checkpoint
from demo.random_checkpoint import Shape
from model.contract.engine_config import EngineConfig
from model.execution.checkpoint import ProgressCallback
from model.loop.engine import Engine
from tools.memory.published_shapes import published_shape

_TINY = Shape(num_layers=2, hidden_size=128, num_heads=2, intermediate_size=512, vocab_size=512, seq_length=512)


def _published(name: str) -> Shape:
    """The shape of a published checkpoint, such as 7b-int4."""
    config = published_shape(f"qwen-{name}")
    assert config is not None
    return Shape(
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_heads,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        seq_length=config.seq_length,
        dtype="bfloat16",
        quantized_bits=0 if config.quantization is None else config.quantization.bits,
    )


_NAMES = ("1.8b", "1.8b-int4", "7b", "7b-int4", "7b-int8", "14b", "14b-int4", "72b-int4")
SHAPES = {"tiny": _TINY, **{name: _published(name) for name in _NAMES}}


def fill_with_random_weights(
    model: nn.Module, folder: Path, device: torch.device, on_progress: ProgressCallback | None = None
) -> int:
    """Replaces `load_weights`: makes random tensors on the device.

    Args:
        model: built on the meta device.
        folder: unused.
        device: the tensors' device.
        on_progress: unused.

    Returns:
        Bytes that the model's weights take.
    """
    del folder, on_progress
    generator = torch.Generator(device).manual_seed(0)
    num_bytes = 0
    for module in model.modules():
        optional = getattr(module, "optional_tensors", ())
        names = [name for name, tensor in module.named_parameters(recurse=False) if name not in optional]
        for name in names:
            tensor = _random_tensor(name, module, device, generator)
            module._parameters[name] = nn.Parameter(tensor, requires_grad=False)
        finish_loading = getattr(module, "finish_loading", None)
        if names and callable(finish_loading):
            num_bytes += finish_loading()
        else:
            num_bytes += sum(tensor.nbytes for name, tensor in module.named_parameters(recurse=False) if name in names)
    return num_bytes


def _random_tensor(name: str, module: nn.Module, device: torch.device, generator: torch.Generator) -> torch.Tensor:
    placeholder = module._parameters[name]
    assert placeholder is not None
    shape, dtype = placeholder.shape, placeholder.dtype
    if name == "qweight":
        limit = (1 << 31) - 1
        return torch.randint(-limit, limit, shape, dtype=dtype, device=device, generator=generator)
    if name == "qzeros":  # stored minus one; the middle of the range, as in the published files
        return torch.full(shape, 0x77777777 if module._bits == 4 else 0x7F7F7F7F, dtype=dtype, device=device)
    if name == "scales":
        return torch.full(shape, 1e-3, dtype=dtype, device=device)
    if len(shape) == 1:
        return torch.ones(shape, dtype=dtype, device=device)
    return torch.randn(shape, dtype=dtype, device=device, generator=generator).mul_(shape[-1] ** -0.5)


def make_engine(shape: Shape, **settings: Any) -> Engine:
    """Makes an engine with random weights.

    Args:
        shape: sizes of the model.
        settings: fields of `EngineConfig`.
    """
    with tempfile.TemporaryDirectory() as name:
        for file_name, content in random_checkpoint._json_files(shape).items():
            (Path(name) / file_name).write_text(json.dumps(content))
        with mock.patch("model.execution.model_loader.load_weights", fill_with_random_weights):
            return Engine(EngineConfig(checkpoint_path=name, **settings))
