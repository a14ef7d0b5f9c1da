"""Which tensor of an adapter belongs to which weight of the model: names and shapes, in both spellings.

Pure. An adapter trained on the weights in transformers' Qwen2 layout has factors for q, k and v apart: they are parts
of the rows of c_attn.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from model.contract.config import ModelConfig
from model.contract.errors import AdapterError
from model.contract.files.adapter_config import SAVED_MODULES, AdapterConfig
from model.contract.files.linears import QWEN2_LINEARS, linear_shapes

# Prefixes of names by peft and the libraries that train with it.
_WRAPPERS = re.compile(r"(?:_fsdp_wrapped_module\.|_orig_mod\.|module\.)*(?:base_model\.model\.)?")
_FACTOR = re.compile(
    r"(?P<module>(?:transformer\.h|model\.layers)\.(?P<layer>\d{1,4})\.(?P<part>(?:attn|self_attn|mlp)\.\w+))"
    r"\.lora_(?P<factor>[AB])(?:\.default)?\.weight"
)
_SAVED = re.compile(r"(?:transformer\.|model\.)?(?P<module>wte|embed_tokens|lm_head)(?:\.modules_to_save)?"
                    r"(?:\.default)?\.weight")  # fmt: skip
# Copies of the base's own weights, which some ways of saving leave in the file.
_ORIGINAL = re.compile(r"\.(?:original_module|base_layer)\.")

# An adapter's name within a block -> the layer that it means, and which part of its outputs (None is all).
_PLACES: dict[str, tuple[str, int | None]] = {name: (name, None) for name in QWEN2_LINEARS}
_PLACES |= {part: (name, index) for name, parts in QWEN2_LINEARS.items() for index, part in enumerate(parts)}


@dataclass(frozen=True, slots=True)
class AdapterTensor:
    """What one tensor of an adapter is.

    Attributes:
        stored_name: its name in the file.
        module: its layer, as published checkpoints call it: "transformer.h.0.attn.c_attn", "lm_head".
        stored_module: the layer, or the part of it, as the adapter calls it.
        factor: "A" [rank, inputs], "B" [outputs, rank], or "" for a whole weight.
        first_output: where the part begins in the layer's outputs.
        shape: the shape that it must have.
    """

    stored_name: str
    module: str
    stored_module: str
    factor: str
    first_output: int
    shape: tuple[int, ...]


def identify(name: str, adapter: AdapterConfig, model: ModelConfig) -> AdapterTensor | None:
    """Says what a tensor of an adapter's file is, by its name; None for a copy of one of the base's own weights.

    Raises:
        AdapterError: this server cannot apply it, or the model has no such layer.
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
    within, part = _PLACES[found["part"]]
    num_inputs, num_outputs = linear_shapes(model)[within]
    first_output = 0
    if part is not None:
        num_outputs //= len(QWEN2_LINEARS[within])
        first_output = part * num_outputs
    rank = adapter.rank_of(found["module"])
    shape = (rank, num_inputs) if found["factor"] == "A" else (num_outputs, rank)
    return AdapterTensor(name, f"transformer.h.{layer}.{within}", found["module"], found["factor"], first_output, shape)


def check_shape(tensor: AdapterTensor, shape: tuple[int, ...], adapter: AdapterConfig) -> None:
    """Refuses a tensor of another shape.

    Raises:
        AdapterError: says what it should be.
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
