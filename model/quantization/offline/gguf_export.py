"""Writes a checkpoint as one GGUF file: metadata in llama.cpp's keys, the vocabulary in GPT-2's letters, weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from model.contract.config import DTYPE_FLAGS, ModelConfig
from model.contract.errors import CheckpointError
from model.contract.files.byte_pairs import letters, merges_of
from model.contract.files.json_file import read_generation_config
from model.contract.files.linears import linear_shapes
from model.contract.files.model_config import read_model_config
from model.contract.files.vocabulary import read_vocabulary
from model.contract.files.weight_files import EMBEDDING
from model.contract.gguf import config as keys
from model.contract.gguf.tensor_names import gguf_name
from model.contract.gguf.types import TENSOR_TYPES, TYPE_NUMBERS
from model.contract.gguf.vocabulary import CONTROL, NORMAL, TOKEN_TYPES, TOKENS, UNUSED
from model.contract.tokenizer import Tokenizer
from model.quantization.offline.gguf_writer import Planned, write_gguf
from model.quantization.offline.tensor_source import TensorSource

logger = logging.getLogger(__name__)

# A type of weights -> the type of the head: it is read once a token, and its error shows in every reply.
HEAD_TYPES = {"bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q8_0"}
_FILE_TYPES = {"bf16": 32, "q8_0": 7, "q4_0": 2}  # llama.cpp's numbers for them

_CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def export_gguf(source: Path, target: Path, weight_type: str, on_tensor: Callable[[str, int], None]) -> None:
    """Writes a checkpoint as a GGUF file.

    Args:
        source: folder of an unquantised checkpoint.
        target: must not exist.
        weight_type: a key of `HEAD_TYPES`.
        on_tensor: called with the name of each tensor that is written, and the number of all.

    Raises:
        CheckpointError: the checkpoint cannot be read, or is quantised.
        ConfigError: the file cannot be written.
    """
    config = read_model_config(source)
    if config.quantization is not None:
        raise CheckpointError(f"{source}: is quantised already; export the checkpoint that it was made from")
    weights = TensorSource(source)
    kind = weight_type.upper()
    tensors = []
    for name, shape in _shapes(config).items():
        wanted = HEAD_TYPES[weight_type] if name == "lm_head.weight" else kind
        tensors.append(_plan(weights, name, shape, wanted))
    whole = [tensor for tensor in tensors if tensor.kind == "BF16" and kind != "BF16"]
    if whole:
        logger.warning("%d tensors stay BF16: their rows are no whole blocks of %s", len(whole), kind)
    metadata = _metadata(source, config) | {"general.file_type": _FILE_TYPES[weight_type]}
    write_gguf(target, metadata, tensors, lambda name: on_tensor(name, len(tensors)))


def _plan(weights: TensorSource, name: str, shape: tuple[int, ...], wanted: str) -> Planned:
    kind = "F32"  # of norms and biases, as llama.cpp asks
    if len(shape) == 2:
        kind = wanted if shape[1] % TENSOR_TYPES[TYPE_NUMBERS[wanted]].block_size == 0 else "BF16"

    def read() -> torch.Tensor:
        tensor = weights.read([name])[name]
        if tensor.shape != shape:
            raise CheckpointError(f"tensor {name!r} has shape {list(tensor.shape)}, but config.json asks for {shape}")
        return tensor

    return Planned(gguf_name(name), shape, kind, read)


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Lists the shapes of all tensors of a checkpoint."""
    hidden = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden)}
    for layer in range(config.num_layers):
        front = f"transformer.h.{layer}."
        shapes |= {f"{front}{name}.weight": (hidden,) for name in ("ln_1", "ln_2")}
        for name, (num_inputs, num_outputs) in linear_shapes(config).items():
            shapes[f"{front}{name}.weight"] = (num_outputs, num_inputs)
            if config.has_bias or name == "attn.c_attn":
                shapes[f"{front}{name}.bias"] = (num_outputs,)
    return shapes | {"transformer.ln_f.weight": (hidden,), "lm_head.weight": (config.vocab_size, hidden)}


def _metadata(source: Path, config: ModelConfig) -> dict[str, Any]:
    generation = read_generation_config(source)
    dtypes = {dtype: flag for flag, dtype in DTYPE_FLAGS.items()}
    chat_format = str(generation.get("chat_format") or "chatml")
    found: dict[str, Any] = {
        "general.architecture": keys.ARCHITECTURE,
        "general.type": "model",
        "general.name": source.resolve().name,
        "general.quantization_version": 2,
        "qwen.context_length": max(config.max_positions, config.seq_length),
        "qwen.embedding_length": config.hidden_size,
        "qwen.block_count": config.num_layers,
        "qwen.feed_forward_length": config.intermediate_size,
        "qwen.attention.head_count": config.num_heads,
        "qwen.attention.layer_norm_rms_epsilon": float(config.layer_norm_epsilon),
        "qwen.rope.freq_base": float(config.rotary_base),
        "qwen.rope.dimension_count": config.rotary_dim,
        keys.SEQ_LENGTH: config.seq_length,
        keys.DYNAMIC_NTK: config.use_dynamic_ntk,
        keys.LOGN_ATTN: config.use_logn_attn,
        keys.WINDOW_ATTN: list(config.attention_windows) or None,
        keys.DTYPE: dtypes.get(config.declared_dtype or ""),
        keys.CHAT_FORMAT: chat_format,
        "tokenizer.chat_template": _CHAT_TEMPLATE if chat_format == "chatml" else None,
        keys.MAX_WINDOW_SIZE: generation.get("max_window_size"),
        keys.MAX_NEW_TOKENS: generation.get("max_new_tokens"),
        keys.DO_SAMPLE: generation.get("do_sample"),
        "general.sampling.top_k": generation.get("top_k"),
        "general.sampling.top_p": _float(generation.get("top_p")),
        "general.sampling.temp": _float(generation.get("temperature")),
        "general.sampling.penalty_repeat": _float(generation.get("repetition_penalty")),
    }
    return {key: value for key, value in (found | _vocabulary(source, config)).items() if value is not None}


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _vocabulary(source: Path, config: ModelConfig) -> dict[str, Any]:
    ranks = read_vocabulary(source)
    tokenizer = Tokenizer(ranks)
    tokens, types = [], []
    for token_id in range(config.vocab_size):
        text = tokenizer.token_bytes(token_id)
        name = "" if text else tokenizer.token_name(token_id)
        tokens.append(letters(text).encode() if text else (name or f"[PAD{token_id}]").encode())
        types.append(NORMAL if text else CONTROL if name else UNUSED)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",  # the same pattern
        TOKENS: tokens,
        TOKEN_TYPES: types,
        "tokenizer.ggml.merges": [" ".join(map(letters, pair)).encode() for pair in merges_of(ranks)],
        "tokenizer.ggml.bos_token_id": tokenizer.endoftext_id,
        "tokenizer.ggml.eos_token_id": tokenizer.endoftext_id,
        "tokenizer.ggml.eot_token_id": tokenizer.im_end_id,
        "tokenizer.ggml.padding_token_id": tokenizer.endoftext_id,
        "tokenizer.ggml.add_bos_token": False,
    }
