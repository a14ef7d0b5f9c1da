"""transformers' Qwen2 class of the same shape on the same device: the peer of the roofline."""

from __future__ import annotations

import argparse
import gc
from typing import Any

import torch

from benchmarks.peers.transformers_peer import qwen2_config
from benchmarks.roofline.device_limits import synchronize
from demo.random_checkpoint import Shape


def _make_model(shape: Shape, device: torch.device, dtype: torch.dtype) -> Any:
    """Returns a model with random weights, whose arithmetic is that of our blocks."""
    from transformers import Qwen2ForCausalLM

    sizes = {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
    }
    config = qwen2_config(sizes, max_position_embeddings=32768)
    with torch.device(device):
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            model = Qwen2ForCausalLM(config)
        finally:
            torch.set_default_dtype(default)
    return model.eval()


def _rate(model: Any, ids: torch.Tensor, num_tokens: int, device: torch.device, **options: Any) -> float:
    """Tokens a second of greedy generate, prefill left out by subtracting a short run."""
    import time

    def generate(count: int) -> float:
        synchronize(device)
        started = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, do_sample=False,
                **options,
            )  # fmt: skip
        synchronize(device)
        return time.perf_counter() - started

    for _ in range(2):
        generate(num_tokens)  # compiles, where that is asked for
    return len(ids) * (num_tokens - 2) / (generate(num_tokens) - generate(2))


def measure_peer(
    shape: Shape, arguments: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> dict[str, dict[str, float | None]]:
    """Tokens a second by batch size, eager and with a static cache and compiled steps; None where it has no memory."""
    model = _make_model(shape, device, dtype)
    rates: dict[str, dict[str, float | None]] = {"eager": {}, "static_compiled": {}}
    # generate() compiles its steps itself when the cache is static.
    for kind, options in (("eager", {}), ("static_compiled", {"cache_implementation": "static"})):
        for batch_size in arguments.batch_sizes:
            ids = torch.randint(0, shape.vocab_size, (batch_size, arguments.prompt_len), device=device)
            try:
                rates[kind][str(batch_size)] = _rate(model, ids, arguments.num_tokens, device, **options)
            except Exception as e:  # no memory, or no compiler: a peer that fails is no reason to lose our figures
                print(f"transformers, {kind}, {batch_size} sequences: {e}", flush=True)
                rates[kind][str(batch_size)] = None
                if device.type == "cuda":
                    torch.cuda.empty_cache()
    del model
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return rates
