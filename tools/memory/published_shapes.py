"""The published checkpoints by name, for reckoning without any file, and what their model cards measured.

Figures of the cards: peak GB on an A100-SXM4-80G with the published code (transformers and auto-gptq) for a prompt of
2048 tokens, and for 8192 generated tokens.
"""

from __future__ import annotations

from model.contract.config import ModelConfig, QuantizationConfig

# name -> layers, hidden, heads, intermediate_size, seq_length, vocabulary rows, rotary base, dynamic NTK
_SHAPES = {
    "1.8b": (24, 2048, 16, 11008, 8192, 151936, 10000.0, True),
    "7b": (32, 4096, 32, 22016, 8192, 151936, 10000.0, True),
    "14b": (40, 5120, 40, 27392, 2048, 152064, 10000.0, True),
    "72b": (80, 8192, 64, 49152, 32768, 152064, 1000000.0, False),
}
_KINDS = {"": None, "-int8": 8, "-int4": 4}

PUBLISHED_NAMES = tuple(f"qwen-{size}{kind}" for size in _SHAPES for kind in _KINDS)

# (name without kind, bits) -> GB for 2048 in, GB for 8192 out
CARD_FIGURES: dict[tuple[str, int | None], tuple[float, float | None]] = {
    ("qwen-7b", None): (17.7, 22.6),
    ("qwen-7b", 4): (8.2, 13.6),
    ("qwen-14b", None): (30.2, 38.9),
    ("qwen-14b", 8): (18.8, 27.5),
    ("qwen-14b", 4): (13.0, 21.8),
    ("qwen-72b", 4): (48.9, None),
}


def short_name(name: str) -> str:
    """Shortens a published checkpoint's name to the table's: `Qwen/Qwen-1_8B-Chat-Int4` to `qwen-1.8b-int4`."""
    return name.lower().removeprefix("qwen/").replace("1_8b", "1.8b").replace("-chat", "")


def published_shape(name: str) -> ModelConfig | None:
    """Returns the numbers of a published checkpoint such as `qwen-7b` or `Qwen/Qwen-14B-Chat-Int4`; None for others."""
    name = short_name(name)
    if name not in PUBLISHED_NAMES:
        return None
    size, _, kind = name.removeprefix("qwen-").partition("-")
    layers, hidden, heads, intermediate, seq_length, vocabulary, base, uses_ntk = _SHAPES[size]
    bits = _KINDS[f"-{kind}" if kind else ""]
    quantization = None
    if bits is not None:
        quantization = QuantizationConfig(quant_method="gptq", bits=bits, group_size=128)
    return ModelConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=intermediate,
        seq_length=seq_length,
        rotary_base=base,
        rotary_dim=hidden // heads,
        layer_norm_epsilon=1e-6,
        use_dynamic_ntk=uses_ntk,
        use_logn_attn=uses_ntk,
        has_bias=False,
        declared_dtype="bfloat16" if bits is None else "float16",
        quantization=quantization,
    )
