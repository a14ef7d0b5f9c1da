"""config.json as the published chat checkpoints have it."""

from __future__ import annotations

from typing import Any

PUBLISHED_CONFIG: dict[str, Any] = {
    "model_type": "qwen",
    "vocab_size": 151936,
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "kv_channels": 128,
    "intermediate_size": 11008,
    "max_position_embeddings": 8192,
    "seq_length": 8192,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "layer_norm_epsilon": 1e-06,
    "no_bias": True,
    "tie_word_embeddings": False,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
    "bf16": True,
    "fp16": False,
    "fp32": False,
}
