"""Names of tensors in the published layout and in transformers' Qwen2 layout; `files.linears` has those of linears.

Pure. The two compute the same within the trained length: they differ in names, and c_attn holds q, k and v in one.
"""

from __future__ import annotations

from model.contract.files.linears import QWEN2_LINEARS

NORMS = {"ln_1": "input_layernorm", "ln_2": "post_attention_layernorm"}
# The only linear that has a bias in either.
BIASED = "attn.c_attn"
# Outside of the blocks, in the order in which they are computed.
FIRST = {"transformer.wte.weight": "model.embed_tokens.weight"}
LAST = {"transformer.ln_f.weight": "model.norm.weight", "lm_head.weight": "lm_head.weight"}


def published_block(layer: int) -> str:
    """Returns the prefix of a block's names in the published layout."""
    return f"transformer.h.{layer}."


def qwen2_block(layer: int) -> str:
    """Returns the prefix of a block's names in the Qwen2 layout."""
    return f"model.layers.{layer}."


def qwen2_targets(published: str) -> list[str]:
    """Lists the linears of the Qwen2 layout that a published name means: two for c_proj, none for an unknown name.

    A name of that layout means itself.
    """
    parts = [
        part.rsplit(".", 1)[-1]
        for name, parts in QWEN2_LINEARS.items()
        for part in parts
        if published in (name, name.rsplit(".", 1)[-1], part.rsplit(".", 1)[-1])
    ]
    return list(dict.fromkeys(parts))
