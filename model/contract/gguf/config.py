"""What a GGUF file says in place of config.json and generation_config.json.

Pure. What the format has no key for (the trained length, NTK, LogN) comes from keys of our own, which `qwen-server
export` writes, else from the published checkpoint of the same shape; what was so supplied is told as a remark.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from model.contract.config import DTYPE_FLAGS
from model.contract.errors import CheckpointError
from model.contract.gguf.file import GGUFFile, read_gguf
from model.contract.gguf.tensor_names import EMBEDDING

ARCHITECTURE = "qwen"

# Keys of our own; other readers skip what they do not know.
SEQ_LENGTH, DYNAMIC_NTK, LOGN_ATTN = "qwen.seq_length", "qwen.use_dynamic_ntk", "qwen.use_logn_attn"
WINDOW_ATTN = "qwen.window_attn"
CHAT_FORMAT, MAX_WINDOW_SIZE = "qwen.chat_format", "qwen.max_window_size"
MAX_NEW_TOKENS, DO_SAMPLE, DTYPE = "qwen.max_new_tokens", "qwen.do_sample", "qwen.dtype"

_CHATML_OPENING = "<|im_start|>"

# (layers, hidden size) of the published checkpoints -> trained lengths, the newest first, and whether NTK and LogN are
# on. The first release of the 7B was trained to 2048, an early 72B to 8192.
_PUBLISHED = {
    (24, 2048): ((8192,), True),
    (32, 4096): ((8192, 2048), True),
    (40, 5120): ((2048,), True),
    (80, 8192): ((32768, 8192), False),
}
_BASE_NAME = re.compile(r"(?i)qwen[-_ ]?(1[._]8|7|14|72)b")


def gguf_config(path: Path) -> tuple[dict[str, Any], list[str], GGUFFile]:
    """Reads what would stand in config.json.

    Returns:
        the keys of config.json, in today's spelling; remarks about what the file does not say; and the file.

    Raises:
        CheckpointError: the file cannot be read, is of another architecture, or is no whole model.
    """
    file = read_gguf(path, frozenset({WINDOW_ATTN}))
    architecture = file.metadata.get("general.architecture")
    if file.metadata.get("general.type", "model") != "model" or architecture is None:
        kind = file.metadata.get("general.type", "without an architecture")
        raise CheckpointError(f"{path}: is a GGUF file of another kind ({kind!r}), not a model's")
    raw: dict[str, Any] = {"model_type": architecture}
    if architecture != ARCHITECTURE:
        return raw, [], file

    def value(key: str, default: Any = None) -> Any:
        return file.metadata.get(f"{ARCHITECTURE}.{key}", default)

    embedding = file.tensors.get(EMBEDDING)
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{path}: has no tensor {EMBEDDING!r} of two dimensions; it is no whole model")
    _refuse_scaled_positions(file)
    hidden, heads = value("embedding_length"), value("attention.head_count")
    head_dim = value("attention.key_length")
    if head_dim is None and isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        head_dim = hidden // heads
    if value("attention.head_count_kv", heads) != heads:
        raise CheckpointError(f"{path}: has other heads for keys than for queries, which this architecture has not")
    rotary = value("rope.dimension_count", head_dim)
    raw |= {
        "hidden_size": hidden,
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "kv_channels": head_dim,
        "intermediate_size": value("feed_forward_length"),
        "max_position_embeddings": value("context_length"),
        "rotary_emb_base": value("rope.freq_base", 10000.0),
        "rotary_pct": rotary / head_dim if isinstance(rotary, int) and isinstance(head_dim, int) and head_dim else 1.0,
        "layer_norm_epsilon": value("attention.layer_norm_rms_epsilon"),
        "vocab_size": embedding.shape[0],
        "no_bias": "blk.0.attn_output.bias" not in file.tensors,
        _dtype_flag(file): True,
        "window_attn": file.metadata.get(WINDOW_ATTN),
    }
    lengths, remarks = _lengths(file, raw)
    return {name: each for name, each in (raw | lengths).items() if each is not None}, remarks, file


def _refuse_scaled_positions(file: GGUFFile) -> None:
    scaling = file.metadata.get(f"{ARCHITECTURE}.rope.scaling.type", "none")
    factor = file.metadata.get(f"{ARCHITECTURE}.rope.scaling.factor", 1.0)
    if scaling != "none" and factor != 1.0:
        raise CheckpointError(
            f"{file.path}: asks for positions scaled by {scaling!r}, factor {factor!r}; this server has dynamic NTK"
        )


def _dtype_flag(file: GGUFFile) -> str:
    """Returns config.json's flag for the dtype of the weights; "bf16", as published, where they are quantised."""
    if file.metadata.get(DTYPE) in tuple(DTYPE_FLAGS):
        return str(file.metadata[DTYPE])
    kinds = {tensor.kind.name for tensor in file.tensors.values() if len(tensor.shape) == 2}
    if kinds <= {"F32", "F64"}:
        return "fp32"
    return "fp16" if "F16" in kinds and kinds <= {"F16", "F32"} else "bf16"


def _lengths(file: GGUFFile, raw: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Finds the trained length, NTK and LogN, and a remark on where they come from."""
    metadata = file.metadata
    context = raw["max_position_embeddings"]
    if not isinstance(context, int) or context <= 0:
        raise CheckpointError(f"{file.path}: {ARCHITECTURE}.context_length must be a positive number, not {context!r}")
    published = _PUBLISHED.get((raw["num_hidden_layers"], raw["hidden_size"]))
    told = {
        "seq_length": metadata.get(SEQ_LENGTH, metadata.get(f"{ARCHITECTURE}.rope.scaling.original_context_length")),
        "use_dynamic_ntk": metadata.get(DYNAMIC_NTK),
        "use_logn_attn": metadata.get(LOGN_ATTN),
    }
    known = {name: value for name, value in told.items() if value is not None}
    if published is None:
        supplied = {"seq_length": context, "use_dynamic_ntk": False, "use_logn_attn": False}
        source = "its shape is of no published checkpoint"
    else:
        trained, is_on = published
        fitting = next((length for length in trained if length <= context), context)
        supplied = {"seq_length": fitting, "use_dynamic_ntk": is_on, "use_logn_attn": is_on}
        source = "those of the published checkpoint of this shape"
    missing = {name: value for name, value in supplied.items() if name not in known}
    remarks = []
    if missing:
        supplied_text = ", ".join(f"{name} {str(value).lower()}" for name, value in missing.items())
        remarks.append(f"the file does not tell {supplied_text}: {source}")
    return missing | known, remarks


def gguf_generation(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Reads what would stand in generation_config.json, and remarks about what the file does not say."""
    file = read_gguf(path)
    metadata = file.metadata
    chat_format, remark = _chat_format(file)
    found = {
        "chat_format": chat_format,
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "do_sample": metadata.get(DO_SAMPLE),
        "temperature": metadata.get("general.sampling.temp"),
        "top_p": metadata.get("general.sampling.top_p"),
        "top_k": metadata.get("general.sampling.top_k"),
        "repetition_penalty": metadata.get("general.sampling.penalty_repeat"),
        "max_new_tokens": metadata.get(MAX_NEW_TOKENS),
        "max_window_size": metadata.get(MAX_WINDOW_SIZE),
    }
    for name in ("temperature", "top_p", "repetition_penalty"):  # float32 there: 0.8, not 0.800000011920929
        if isinstance(found[name], float):
            found[name] = float(f"{found[name]:.7g}")
    return {name: value for name, value in found.items() if value is not None}, remark


def _chat_format(file: GGUFFile) -> tuple[str, list[str]]:
    metadata = file.metadata
    own = metadata.get(CHAT_FORMAT)
    if own is not None:
        return str(own), []
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        if _CHATML_OPENING in template:
            return "chatml", []
        return "chatml", ["its chat template is not ChatML, which these models know; chats are rendered as ChatML"]
    names = [str(metadata.get(key) or "") for key in ("general.name", "general.finetune", "general.basename")]
    if _BASE_NAME.fullmatch(names[0].strip()) and "chat" not in " ".join((*names, file.path.stem)).lower():
        return "raw", [f"the file has no chat template and is called {names[0]!r}: taken for a base model"]
    return "chatml", [] if "chat" in " ".join(names).lower() else ["the file has no chat template: chats are ChatML"]
