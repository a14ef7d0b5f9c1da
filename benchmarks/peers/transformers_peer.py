"""transformers' generate on the same weights, as a peer.

Today's transformers no longer runs this family's remote code, but the arithmetic of its Qwen2 class is the same for
prompts within the trained length: w2 is its gate, w1 its up projection.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from model.contract.files.weight_files import find_weight_files
from model.execution.tensor_files import iterate_tensors


def qwen2_config(sizes: Mapping[str, Any], **options: Any) -> Any:
    """Returns the Qwen2Config of a first-generation model; `sizes` has the fields of the published config.json."""
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["intermediate_size"] // 2,
        num_hidden_layers=sizes["num_hidden_layers"],
        num_attention_heads=sizes["num_attention_heads"],
        num_key_value_heads=sizes["num_attention_heads"],
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        **options,
    )


def load_as_qwen2(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Returns a Qwen2ForCausalLM with a first-generation checkpoint's weights (no NTK, no LogN)."""
    from transformers import Qwen2ForCausalLM

    config = json.loads((folder / "config.json").read_text())
    rotary = {"rope_type": "default", "rope_theta": float(config["rotary_emb_base"])}
    with torch.device("meta"):
        model = Qwen2ForCausalLM(
            qwen2_config(
                config,
                max_position_embeddings=config["max_position_embeddings"],
                rms_norm_eps=config["layer_norm_epsilon"],
                rope_parameters=rotary,
            )
        )
    state: dict[str, torch.Tensor] = {}
    for path in find_weight_files(folder):
        for name, tensor in iterate_tensors(path):
            for new_name, part in _renamed(name, tensor.to(dtype)):
                state[new_name] = part.clone()
    model.load_state_dict(state, strict=True, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model.eval()


def _renamed(name: str, tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    if name == "lm_head.weight":
        return [(name, tensor)]
    name = name.removeprefix("transformer.")
    simple = {"wte.weight": "model.embed_tokens.weight", "ln_f.weight": "model.norm.weight"}
    if name in simple:
        return [(simple[name], tensor)]
    _, layer, rest = name.split(".", 2)
    prefix = f"model.layers.{layer}."
    if rest.startswith("attn.c_attn."):
        kind = rest.removeprefix("attn.c_attn.")
        parts = tensor.chunk(3)
        return [(f"{prefix}self_attn.{p}_proj.{kind}", part) for p, part in zip("qkv", parts, strict=True)]
    renames = {
        "ln_1.weight": "input_layernorm.weight",
        "ln_2.weight": "post_attention_layernorm.weight",
        "attn.c_proj.weight": "self_attn.o_proj.weight",
        "mlp.w1.weight": "mlp.up_proj.weight",
        "mlp.w2.weight": "mlp.gate_proj.weight",
        "mlp.c_proj.weight": "mlp.down_proj.weight",
    }
    return [(prefix + renames[rest], tensor)]


def measure(model: Any, batch_size: int, prompt_len: int, num_tokens: int) -> float:
    """Tokens a second of greedy generate, prefill left out by subtracting a one-token run."""
    ids = torch.randint(0, model.config.vocab_size, (batch_size, prompt_len))

    def generate(count: int) -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
        return time.perf_counter() - started

    generate(2)
    return batch_size * (num_tokens - 1) / (generate(num_tokens) - generate(1))
