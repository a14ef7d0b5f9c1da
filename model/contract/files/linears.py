"""The linear layers of a block: their shapes, and their names in transformers' Qwen2 layout.

Pure. The published layout keeps queries, keys and values in one layer, c_attn; the other has a layer for each.
"""

from __future__ import annotations

from typing import NamedTuple

from model.contract.config import ModelConfig

# A linear of the published layout, and its parts in the other, which lie one behind the other in its outputs.
QWEN2_LINEARS = {
    "attn.c_attn": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.c_proj": ("self_attn.o_proj",),
    "mlp.w1": ("mlp.up_proj",),
    "mlp.w2": ("mlp.gate_proj",),
    "mlp.c_proj": ("mlp.down_proj",),
}


class LinearShape(NamedTuple):
    """Inputs and outputs of a linear layer."""

    num_inputs: int
    num_outputs: int


def linear_shapes(config: ModelConfig) -> dict[str, LinearShape]:
    """Returns the shapes of the linear layers of a block, by name within it."""
    hidden, inner = config.hidden_size, config.intermediate_size // 2
    return {
        "attn.c_attn": LinearShape(hidden, 3 * hidden),
        "attn.c_proj": LinearShape(hidden, hidden),
        "mlp.w1": LinearShape(hidden, inner),
        "mlp.w2": LinearShape(hidden, inner),
        "mlp.c_proj": LinearShape(inner, hidden),
    }
