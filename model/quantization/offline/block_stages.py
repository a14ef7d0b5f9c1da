"""Runs a block of the architecture stage by stage, so that each linear can be replaced before the next one is fed.

The arithmetic is that of architectures/qwen.py on the same backend (a test compares the two). It differs in that all
calibration samples pass a stage before the next stage begins, and that the linears are plain matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F

from model.backends import make_torch_backend
from model.contract.config import ModelConfig
from model.execution.forward_batch import ForwardBatch, SequenceSpan
from model.execution.kv_cache import allocate_kv_cache
from model.quantization.offline.gptq_solver import Hessian

_BLOCK_SIZE = 16

# Linears that share their inputs, in the order they are reached.
STAGES = (("attn.c_attn",), ("attn.c_proj",), ("mlp.w1", "mlp.w2"), ("mlp.c_proj",))

Weights = dict[str, torch.Tensor]
Quantize = Callable[[str, Hessian], None]


class CalibrationRun:
    """Takes all samples through the model, one block at a time, in float32.

    Args:
        samples: [num_samples, sample_length] int64 token ids; no longer than the trained length.
        embedding: [vocab_size, hidden_size].

    Attributes:
        hidden: [num_samples, sample_length, hidden_size] float32, the inputs of the next block.
    """

    def __init__(
        self, config: ModelConfig, samples: torch.Tensor, embedding: torch.Tensor, device: torch.device
    ) -> None:
        length = samples.shape[1]
        self._config = config
        self._backend = make_torch_backend(device)
        self._device = device
        self.hidden = F.embedding(samples, embedding).float().to(device)
        # All samples are equally long and start at 0, so one batch of one sequence describes each of them.
        num_blocks = -(-length // _BLOCK_SIZE)
        cache = allocate_kv_cache(
            replace(config, num_layers=1),
            num_blocks=num_blocks,
            block_size=_BLOCK_SIZE,
            dtype=torch.float32,
            device=device,
        )
        span = SequenceSpan([0] * length, 0, config.rope_alpha(length), list(range(num_blocks)), 1)
        self._batch = ForwardBatch.build([span], config, _BLOCK_SIZE, device)
        self._plan = self._backend.plan_attention(self._batch, cache)

    def run_block(self, weights: Weights, quantize: Quantize) -> None:
        """Takes the samples through one block.

        Args:
            weights: the block's tensors, by name within it ("attn.c_attn.weight"), float32 on the device.
            quantize: called with a linear's name and its inputs' Hessian; may replace its weight in `weights`, and
                what comes later sees the outputs of the new one.
        """
        for names in STAGES:
            hessian = Hessian(weights[f"{names[0]}.weight"].shape[1], self._device)
            for sample in self.hidden:
                hessian.add(self._inputs(names[0], sample, weights))
            for name in names:
                quantize(name, hessian)
            del hessian
            if names[0].endswith("c_proj"):
                for sample in self.hidden:
                    sample += self._linear(names[0], self._inputs(names[0], sample, weights), weights)

    def _inputs(self, name: str, sample: torch.Tensor, weights: Weights) -> torch.Tensor:
        """Returns a linear's inputs, [sample_length, K]; `sample` is the residual before its half of the block."""
        norm = weights["ln_1.weight" if name.startswith("attn") else "ln_2.weight"]
        x = self._backend.rms_norm(sample, norm, self._config.layer_norm_epsilon)
        if name == "attn.c_proj":
            return self._backend.attention(self._linear("attn.c_attn", x, weights), 0, self._batch, self._plan)
        if name == "mlp.c_proj":
            return self._backend.silu_mul(self._linear("mlp.w2", x, weights), self._linear("mlp.w1", x, weights))
        return x

    @staticmethod
    def _linear(name: str, x: torch.Tensor, weights: Weights) -> torch.Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))
