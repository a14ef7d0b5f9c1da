"""GGUF's names of tensors: what a checkpoint calls each, where in the model it is, and the memory it takes."""

from __future__ import annotations

import math
import re

from model.contract.gguf.file import GGUFTensor

EMBEDDING = "token_embd.weight"

# GGUF's name -> the checkpoint's.
_NAMES = {
    "token_embd": "transformer.wte",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
_LAYER_NAMES = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.w1",
    "ffn_gate": "mlp.w2",
    "ffn_down": "mlp.c_proj",
}
_GGUF_NAMES = {ours: theirs for theirs, ours in (_NAMES | _LAYER_NAMES).items()}
_BLOCK = re.compile(r"blk\.(\d{1,5})\.(\w+)")


def checkpoint_name(name: str) -> str:
    """Translates GGUF's name of a tensor to the checkpoint's; an unknown name stays as it is."""
    stem, _, kind = name.rpartition(".")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{kind}"
    match = _BLOCK.fullmatch(stem)
    if match and match[2] in _LAYER_NAMES:
        return f"transformer.h.{int(match[1])}.{_LAYER_NAMES[match[2]]}.{kind}"
    return name


def gguf_name(name: str) -> str:
    """Translates a checkpoint's name of a tensor to GGUF's; the inverse of `checkpoint_name`."""
    stem, _, kind = name.rpartition(".")
    if stem in _GGUF_NAMES:
        return f"{_GGUF_NAMES[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{_GGUF_NAMES[part]}.{kind}"


def tensors_by_part(tensors: dict[str, GGUFTensor], num_layers: int) -> list[dict[str, GGUFTensor]]:
    """Sorts tensors by where in the model they are: the embedding, each layer, what comes after the layers."""
    parts: list[dict[str, GGUFTensor]] = [{} for _ in range(num_layers + 2)]
    for name, tensor in tensors.items():
        match = _BLOCK.match(name)
        index = -1 if match is None else min(int(match[1]), num_layers) + 1
        parts[0 if name == EMBEDDING else index][name] = tensor
    return parts


def kept_bytes(tensors: dict[str, GGUFTensor]) -> tuple[int, int]:
    """Reckons the memory that loaded tensors take.

    Returns:
        bytes of the tensors that stay packed, and the count of numbers that are kept in the activations' dtype.
    """
    packed_bytes = num_plain = 0
    for tensor in tensors.values():
        count, kind = math.prod(tensor.shape), tensor.kind
        if kind.kept_bits and len(tensor.shape) == 2:
            numbers = count // kind.group_size * (2 if kind.has_offsets else 1)
            packed_bytes += count * kind.kept_bits // 8 + 4 * numbers
        else:
            num_plain += count
    return packed_bytes, num_plain
