"""Whether a checkpoint's numbers fit into float16, found out before the first request.

bfloat16 reaches as far as float32, float16 to 65,504. A checkpoint trained in the one and run in the other mostly
fits, as the residual stream is summed in float32; where it does not, its replies would be noise.
"""

from __future__ import annotations

import functools

import torch
from torch import nn

from model.architectures.causal_lm import CausalLM
from model.contract.config import ModelConfig
from model.contract.errors import ConfigError
from model.execution.forward_batch import ForwardBatch, SequenceSpan
from model.execution.kv_cache import KVCache

_PROBE_TOKENS = 64


def require_finite(model: CausalLM, config: ModelConfig, cache: KVCache, device: torch.device) -> None:
    """Runs a step of tokens from all over the vocabulary and looks at what every layer makes of them.

    Args:
        cache: a cache that nothing has been written to yet; the step writes to its first blocks.

    Raises:
        ConfigError: a layer's numbers are beyond float16, naming it.
    """
    num_tokens = min(_PROBE_TOKENS, config.seq_length, cache.num_blocks * cache.block_size)
    token_ids = [config.vocab_size * i // num_tokens for i in range(num_tokens)]
    blocks = list(range(-(-num_tokens // cache.block_size)))
    span = SequenceSpan(token_ids, 0, config.rope_alpha(num_tokens), blocks, 1)
    names: list[str] = []
    verdicts: list[torch.Tensor] = []
    hooks = [
        module.register_forward_hook(functools.partial(_look, name, names, verdicts))
        for name, module in model.named_modules()
        if not list(module.children())
    ]
    try:
        batch = ForwardBatch.build([span], config, cache.block_size, device)
        model.logits(model(batch, cache)[batch.logit_rows])
    finally:
        for hook in hooks:
            hook.remove()
    is_finite = torch.stack(verdicts).tolist()
    if all(is_finite):
        return
    name = names[is_finite.index(False)]
    raise ConfigError(
        f"the numbers of {name} overflow float16 (they are beyond 65,504): start with --dtype float32, or "
        "--dtype bfloat16 where the device computes in it"
    )


def _look(
    name: str, names: list[str], verdicts: list[torch.Tensor], module: nn.Module, inputs: object, output: torch.Tensor
) -> None:
    names.append(name)
    verdicts.append(torch.isfinite(output).all())
