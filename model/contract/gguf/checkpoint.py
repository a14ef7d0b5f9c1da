"""What a GGUF file says in place of config.json, generation_config.json and qwen.tiktoken.

Pure. What the format has no key for (the trained length, NTK, LogN) comes from keys of our own, which `qwen-server
export` writes, else from the published checkpoint of the same shape; what was so supplied is told as a remark.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from model.contract.errors import CheckpointError
from model.contract.gguf.file import GGUFFile, GGUFTensor, read_gguf

ARCHITECTURE = "qwen"
EMBEDDING = "token_embd.weight"
TOKENS, TOKEN_TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"

# Keys of our own; other readers skip what they do not know.
SEQ_LENGTH, DYNAMIC_NTK, LOGN_ATTN = "qwen.seq_length", "qwen.use_dynamic_ntk", "qwen.use_logn_attn"
WINDOW_ATTN = "qwen.window_attn"
CHAT_FORMAT, MAX_WINDOW_SIZE = "qwen.chat_format", "qwen.max_window_size"
MAX_NEW_TOKENS, DO_SAMPLE, DTYPE = "qwen.max_new_tokens", "qwen.do_sample", "qwen.dtype"

_NORMAL, _CONTROL = 1, 3  # types of tokens
_CHATML_OPENING = "<|im_start|>"
_CONTROL_NAMES = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

# (layers, hidden size) of the published checkpoints -> trained lengths, the newest first, and whether NTK and LogN are
# on. The first release of the 7B was trained to 2048, an early 72B to 8192.
_PUBLISHED = {
    (24, 2048): ((8192,), True),
    (32, 4096): ((8192, 2048), True),
    (40, 5120): ((2048,), True),
    (80, 8192): ((32768, 8192), False),
}
_BASE_NAME = re.compile(r"(?i)qwen[-_ ]?(1[._]8|7|14|72)b")

# A tensor of the file, and the checkpoint's name for it.
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
_BLOCK = re.compile(r"blk\.(\d{1,5})\.(\w+)")


def checkpoint_name(name: str) -> str:
    """The checkpoint's name of a tensor that the file names in GGUF's way; a name of neither stays as it is."""
    stem, _, kind = name.rpartition(".")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{kind}"
    match = _BLOCK.fullmatch(stem)
    if match and match[2] in _LAYER_NAMES:
        return f"transformer.h.{int(match[1])}.{_LAYER_NAMES[match[2]]}.{kind}"
    return name


def gguf_name(name: str) -> str:
    """The file's name of a checkpoint's tensor; the inverse of `checkpoint_name`."""
    stem, _, kind = name.rpartition(".")
    for ours, theirs in _NAMES.items():
        if stem == theirs:
            return f"{ours}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return next(f"blk.{layer}.{ours}.{kind}" for ours, theirs in _LAYER_NAMES.items() if theirs == part)


def gguf_config(path: Path) -> tuple[dict[str, Any], list[str], GGUFFile]:
    """Reads what would stand in config.json.

    Returns:
        it, in today's spelling; remarks about what the file does not say; and what was read.

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
    """The flag of config.json for what the weights were; bfloat16, as published, where they are quantised."""
    if file.metadata.get(DTYPE) in ("bf16", "fp16", "fp32"):
        return str(file.metadata[DTYPE])
    kinds = {tensor.kind.name for tensor in file.tensors.values() if len(tensor.shape) == 2}
    if kinds <= {"F32", "F64"}:
        return "fp32"
    return "fp16" if "F16" in kinds and kinds <= {"F16", "F32"} else "bf16"


def _lengths(file: GGUFFile, raw: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The trained length, NTK and LogN, and what to tell about where they come from."""
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


def gguf_ranks(path: Path) -> dict[bytes, int]:
    """Reads the vocabulary: each token's bytes and its id, control tokens and padding left out.

    Raises:
        CheckpointError: there is none, or one of another kind than these models'.
    """
    file = read_gguf(path, frozenset({TOKENS, TOKEN_TYPES}))
    tokens, types = file.metadata.get(TOKENS), file.metadata.get(TOKEN_TYPES)
    model = file.metadata.get("tokenizer.ggml.model")
    if model != "gpt2" or not isinstance(tokens, list) or not all(isinstance(token, bytes) for token in tokens):
        raise CheckpointError(f"{path}: its vocabulary is {model!r}; these models have byte-level BPE ('gpt2')")
    if types is None:
        types = [_NORMAL] * len(tokens)
    if not isinstance(types, list) or len(types) != len(tokens):
        raise CheckpointError(f"{path}: {TOKEN_TYPES!r} does not tell a type for each of the {len(tokens)} tokens")
    end_of_text = _CONTROL_NAMES[0].encode()
    start = tokens.index(end_of_text) if end_of_text in tokens else -1
    names = [token.decode("utf-8", errors="replace") for token in tokens[start : start + 3]]
    if start < 0 or names != list(_CONTROL_NAMES):
        raise CheckpointError(f"{path}: its vocabulary has not {', '.join(_CONTROL_NAMES)} in a row, as these models'")
    alphabet = byte_alphabet()
    ranks: dict[bytes, int] = {}
    for token_id, token in enumerate(tokens):
        if token_id >= start and (types[token_id] != _NORMAL or token_id < start + 208 or token.startswith(b"[PAD")):
            continue
        try:
            text = bytes(alphabet[character] for character in token.decode("utf-8"))
        except (KeyError, UnicodeDecodeError) as e:
            raise CheckpointError(f"{path}: token {token_id} is not in the alphabet of bytes: {token[:40]!r}") from e
        if not text or text in ranks:
            raise CheckpointError(f"{path}: token {token_id} {'is empty' if not text else 'stands there twice'}")
        ranks[text] = token_id
    return ranks


def byte_alphabet() -> dict[str, int]:
    """The characters of such vocabularies, and their bytes: printable ones are themselves, others begin at U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def tensors_by_part(tensors: dict[str, GGUFTensor], num_layers: int) -> list[dict[str, GGUFTensor]]:
    """Sorts tensors by where in the model they are: the embedding, each layer, what comes after the layers."""
    parts: list[dict[str, GGUFTensor]] = [{} for _ in range(num_layers + 2)]
    for name, tensor in tensors.items():
        match = _BLOCK.match(name)
        index = -1 if match is None else min(int(match[1]), num_layers) + 1
        parts[0 if name == EMBEDDING else index][name] = tensor
    return parts


def kept_bytes(tensors: dict[str, GGUFTensor]) -> tuple[int, int]:
    """What the loaded tensors take.

    Returns:
        bytes of those that stay packed, in whatever dtype is computed; and how many numbers are of that dtype.
    """
    packed_bytes = num_plain = 0
    for tensor in tensors.values():
        count = 1
        for length in tensor.shape:
            count *= length
        kind = tensor.kind
        if kind.kept_bits and len(tensor.shape) == 2:
            numbers = count // kind.group_size * (2 if kind.has_offsets else 1)
            packed_bytes += count * kind.kept_bits // 8 + 4 * numbers
        else:
            num_plain += count
    return packed_bytes, num_plain
