"""Which tensor of an adapter belongs to which weight of the model: names and shapes, in both spellings.

Pure. An adapter trained on the weights in transformers' Qwen2 layout has factors for q, k and v apart: they are parts
of the rows of c_attn.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from model.contract.config import ModelConfig
from model.contract.errors import AdapterError
from model.contract.files.adapter_config import SAVED_MODULES, AdapterConfig

# What peft and those who train with it put in front of names.
_WRAPPERS = re.compile(r"(?:_fsdp_wrapped_module\.|_orig_mod\.|module\.)*(?:base_model\.model\.)?")
_FACTOR = re.compile(
    r"(?P<module>(?:transformer\.h|model\.layers)\.(?P<layer>\d{1,4})\.(?P<part>(?:attn|self_attn|mlp)\.\w+))"
    r"\.lora_(?P<factor>[AB])(?:\.default)?\.weight"
)
_SAVED = re.compile(r"(?:transformer\.|model\.)?(?P<module>wte|embed_tokens|lm_head)(?:\.modules_to_save)?"
                    r"(?:\.default)?\.weight")  # fmt: skip
# Copies of the base's own weights, which some ways of saving leave in the file.
_ORIGINAL = re.compile(r"\.(?:original_module|base_layer)\.")

# Of a layer's outputs, equal parts that may be trained apart: queries, keys and values.
NUM_PARTS = {"attn.c_attn": 3}

# Within a layer: what peft's name stands for, and which of c_attn's three row blocks it is.
_PLACES = {
    "attn.c_attn": ("attn.c_attn", None),
    "attn.c_proj": ("attn.c_proj", None),
    "mlp.w1": ("mlp.w1", None),
    "mlp.w2": ("mlp.w2", None),
    "mlp.c_proj": ("mlp.c_proj", None),
    "self_attn.q_proj": ("attn.c_attn", 0),
    "self_attn.k_proj": ("attn.c_attn", 1),
    "self_attn.v_proj": ("attn.c_attn", 2),
    "self_attn.o_proj": ("attn.c_proj", None),
    "mlp.gate_proj": ("mlp.w2", None),
    "mlp.up_proj": ("mlp.w1", None),
    "mlp.down_proj": ("mlp.c_proj", None),
}


class LinearShape(NamedTuple):
    """Inputs and outputs of a linear layer."""

    num_inputs: int
    num_outputs: int


@dataclass(frozen=True, slots=True)
class AdapterTensor:
    """What one tensor of an adapter is.

    Attributes:
        stored_name: in the file.
        module: of the model, as its own checkpoints call it: "transformer.h.0.attn.c_attn", "lm_head".
        stored_module: what the adapter calls that, or the part of it that this is.
        factor: "A" [rank, inputs], "B" [outputs, rank], or "" for a whole weight.
        first_output: where in the module's outputs those of this part begin.
        shape: that it must have.
    """

    stored_name: str
    module: str
    stored_module: str
    factor: str
    first_output: int
    shape: tuple[int, ...]


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


def identify(name: str, adapter: AdapterConfig, model: ModelConfig) -> AdapterTensor | None:
    """Says what a tensor of an adapter's file is, by its name.

    Returns:
        None for a copy of one of the base's own weights.

    Raises:
        AdapterError: nothing that this server can apply, or of a layer that the model has not.
    """
    bare = name[_WRAPPERS.match(name).end() :]  # type: ignore[union-attr]  # it matches nothing at the least
    saved = _SAVED.fullmatch(bare)
    if saved is not None:
        module = SAVED_MODULES[saved["module"]]
        return AdapterTensor(name, module, saved["module"], "", 0, (model.vocab_size, model.hidden_size))
    if _ORIGINAL.search(bare):
        return None
    found = _FACTOR.fullmatch(bare)
    if found is None or found["part"] not in _PLACES:
        kind = "a DoRA magnitude" if "lora_magnitude" in name else "no factor of a layer that is served with adapters"
        raise AdapterError(f"{adapter.path.parent}: tensor {name[:120]!r} is {kind}")
    layer = int(found["layer"])
    if layer >= model.num_layers:
        raise AdapterError(
            f"{adapter.path.parent}: tensor {name!r} is of layer {layer}, but the model has {model.num_layers} layers;"
            f" {_other_base(adapter)}"
        )
    within, block = _PLACES[found["part"]]
    num_inputs, num_outputs = linear_shapes(model)[within]
    first_output = 0
    if block is not None:
        num_outputs //= NUM_PARTS[within]
        first_output = block * num_outputs
    rank = adapter.rank_of(found["module"])
    shape = (rank, num_inputs) if found["factor"] == "A" else (num_outputs, rank)
    return AdapterTensor(
        name, f"transformer.h.{layer}.{within}", found["module"], found["factor"], first_output, shape
    )


def check_shape(tensor: AdapterTensor, shape: tuple[int, ...], adapter: AdapterConfig) -> None:
    """Refuses a tensor of another shape.

    Raises:
        AdapterError: saying what it should be.
    """
    if shape != tensor.shape:
        rank_axis = 0 if tensor.factor == "A" else 1
        is_rank = tensor.factor and len(shape) == 2 and shape[1 - rank_axis] == tensor.shape[1 - rank_axis]
        why = f"{adapter.path.name} gives it rank {tensor.shape[rank_axis]}" if is_rank else _other_base(adapter)
        raise AdapterError(
            f"{adapter.path.parent}: tensor {tensor.stored_name!r} has shape {list(shape)}, but must have"
            f" {list(tensor.shape)}; {why}"
        )


def _other_base(adapter: AdapterConfig) -> str:
    base = "another model" if adapter.base_name is None else repr(adapter.base_name[:200])
    return f"the adapter was trained on {base}, whose numbers are not those of the model served"
