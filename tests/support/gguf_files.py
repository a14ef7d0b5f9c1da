"""GGUF files written from the format's description, value by value: nothing of the program's own writer is used."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from model.quantization.offline.gguf_export import export_gguf

# (numbers in a block, its bytes, where its float16 scales stand) by type number
BLOCKS = {
    "Q4_0": (2, 32, 18, (0,)),
    "Q4_1": (3, 32, 20, (0, 2)),
    "Q5_0": (6, 32, 22, (0,)),
    "Q5_1": (7, 32, 24, (0, 2)),
    "Q8_0": (8, 32, 34, (0,)),
    "Q2_K": (10, 256, 84, (80, 82)),
    "Q3_K": (11, 256, 110, (108,)),
    "Q4_K": (12, 256, 144, (0, 2)),
    "Q5_K": (13, 256, 176, (0, 2)),
    "Q6_K": (14, 256, 210, (208,)),
    "IQ4_NL": (20, 32, 18, (0,)),
    "IQ4_XS": (23, 256, 136, (0,)),
    "TQ2_0": (35, 256, 66, (64,)),
}


class Stored(NamedTuple):
    """A tensor as it lies in a file: rows first, the number of its type, its bytes."""

    shape: tuple[int, ...]
    type_number: int
    data: bytes


def random_blocks(kind: str, num_rows: int, num_columns: int, seed: int, size: float = 0.01) -> Stored:
    """Blocks of random bits, whose scales are about `size`."""
    number, block, num_bytes, scales = BLOCKS[kind]
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (num_rows * num_columns // block, num_bytes), dtype=np.uint8)
    for place in scales:
        numbers = (generator.random(len(blocks)) * size).astype(np.float16)
        blocks[:, place : place + 2] = numbers.view(np.uint8).reshape(-1, 2)
    return Stored((num_rows, num_columns), number, blocks.tobytes())


def plain(array: np.ndarray) -> Stored:
    """float32 numbers."""
    return Stored(array.shape, 0, array.astype(np.float32).tobytes())


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def value(each: Any) -> bytes:
    match each:
        case bool():
            return struct.pack("<I?", 7, each)
        case int():
            return struct.pack("<II", 4, each)
        case float():
            return struct.pack("<If", 6, each)
        case str():
            return struct.pack("<I", 8) + text(each)
        case bytes():  # a type and what follows it, as they are
            return each
    if each and isinstance(each[0], int):
        return struct.pack(f"<IIQ{len(each)}i", 9, 5, len(each), *each)
    return struct.pack("<IIQ", 9, 8, len(each)) + b"".join(map(text, each))


def gguf_bytes(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Stored],
    *,
    version: int = 3,
    num_tensors: int | None = None,
    num_keys: int | None = None,
) -> bytes:
    out = b"GGUF" + struct.pack(
        "<IQQ",
        version,
        len(tensors) if num_tensors is None else num_tensors,
        len(metadata) if num_keys is None else num_keys,
    )
    for key, each in metadata.items():
        out += text(key) + value(each)
    offset = 0
    for name, stored in tensors.items():
        out += text(name) + struct.pack("<I", len(stored.shape))
        out += struct.pack(f"<{len(stored.shape)}Q", *stored.shape[::-1])
        out += struct.pack("<IQ", stored.type_number, offset)
        offset += -(-len(stored.data) // 32) * 32
    for stored in tensors.values():
        out += b"\0" * (-len(out) % 32) + stored.data
    return out


def gpt2_characters() -> dict[int, str]:
    """GPT-2's character for each byte, as its `bytes_to_unicode` makes them."""
    shown = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    characters, more = {byte: chr(byte) for byte in shown}, 0
    for byte in range(256):
        if byte not in characters:
            characters[byte] = chr(256 + more)
            more += 1
    return characters


def vocabulary(num_rows: int) -> dict[str, Any]:
    """The 256 bytes, 208 control tokens and padding, as llama.cpp's converter writes them."""
    characters = gpt2_characters()
    controls = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
    tokens = [*(characters[byte] for byte in range(256)), *controls][:num_rows]
    types = [1] * min(256, num_rows) + [3] * (len(tokens) - 256)
    padding = num_rows - len(tokens)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens + [f"[PAD{len(tokens) + i}]" for i in range(padding)],
        "tokenizer.ggml.token_type": types + [5] * padding,
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": 256,
        "tokenizer.ggml.eos_token_id": 256,
    }


def shape_metadata(**changes: Any) -> dict[str, Any]:
    """A model of two layers that K-quants fit: hidden size 256, MLP of 256 each, 512 rows of vocabulary."""
    return {
        "general.architecture": "qwen",
        "general.name": "Tiny Chat",
        "qwen.context_length": 512,
        "qwen.embedding_length": 256,
        "qwen.block_count": 2,
        "qwen.feed_forward_length": 512,
        "qwen.attention.head_count": 4,
        "qwen.attention.layer_norm_rms_epsilon": 1e-6,
        "qwen.rope.freq_base": 10000.0,
        "qwen.rope.dimension_count": 64,
        **vocabulary(512),
        **changes,
    }


def tiny_tensors(kinds: Mapping[str, str], seed: int = 0) -> dict[str, Stored]:
    """All tensors of that model.

    Args:
        kinds: type by the end of a name in the file ("attn_qkv", "output"); others are Q8_0.
        seed: of the bits.
    """
    generator = np.random.default_rng(seed)
    shapes = {"attn_qkv": (768, 256), "attn_output": (256, 256), "ffn_up": (256, 256), "ffn_gate": (256, 256)}
    shapes["ffn_down"] = (256, 256)
    found: dict[str, Stored] = {}

    def matrix(name: str, part: str, shape: tuple[int, int]) -> None:
        kind = kinds.get(part, "Q8_0")
        if kind == "F32":
            found[name] = plain(generator.normal(0, 0.05, shape))
        else:
            size = 0.001 if kind[1] == "8" or kind[-1] == "K" or kind == "IQ4_XS" else 0.01
            found[name] = random_blocks(kind, *shape, seed=seed + len(found), size=size)

    matrix("token_embd.weight", "token_embd", (512, 256))
    for layer in range(2):
        for part, shape in shapes.items():
            matrix(f"blk.{layer}.{part}.weight", part, shape)
        found[f"blk.{layer}.attn_qkv.bias"] = plain(generator.normal(0, 0.1, 768))
        for part in ("attn_norm", "ffn_norm"):
            found[f"blk.{layer}.{part}.weight"] = plain(1 + generator.normal(0, 0.1, 256))
    found["output_norm.weight"] = plain(1 + generator.normal(0, 0.1, 256))
    matrix("output.weight", "output", (512, 256))
    return found


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Stored]) -> Path:
    path.write_bytes(gguf_bytes(metadata, tensors))
    return path


def exported(source: Path, target: Path, weight_type: str) -> Path:
    export_gguf(source, target, weight_type, lambda name, total: None)
    return target
