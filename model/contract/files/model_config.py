"""Reads `config.json` in both published spellings, or a GGUF file's metadata, into a `ModelConfig`.

Pure: no tensors. Every number of the architecture comes from here; nothing is assumed from a model's name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.contract.attention_windows import windows_of
from model.contract.config import DTYPE_FLAGS, PUBLISHED_CLASS, ModelConfig, QuantizationConfig, StoredWeights
from model.contract.errors import CheckpointError
from model.contract.files.checkpoint_folder import MODEL_TYPE, describe_model_type, gguf_in, require_checkpoint
from model.contract.files.json_file import MAX_CONFIG_BYTES, read_json
from model.contract.files.quantization_config import read_quantization
from model.contract.files.weight_files import rows_of_embedding
from model.contract.gguf.config import gguf_config
from model.contract.gguf.file import is_gguf
from model.contract.gguf.tensor_names import kept_bytes, tensors_by_part

# A layer of a model is built before its weights are missed: far beyond any model, and quick to be built.
_MAX_LAYERS = 1024
_MAX_SIZE = 1 << 24
# JSON has whole numbers that no float holds.
_MAX_FLOAT = 1e300

# today's name -> the first release's
_FIRST_RELEASE_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "ffn_hidden_size",
    "max_position_embeddings": "n_positions",
}

# Misspelt as in the published cards, and what is meant.
_MISSPELT = {
    "use_dynamc_ntk": "use_dynamic_ntk",
    "use_long_attn": "use_logn_attn",
}
# Parts that other models of the same model_type have, and what those are called.
_OTHER_MODELS = {"visual": "Qwen-VL", "audio": "Qwen-Audio"}


def read_model_config(folder: str | Path, stored_rows: Callable[[Path], int | None] = rows_of_embedding) -> ModelConfig:
    """Reads the numbers of a checkpoint.

    Args:
        folder: a checkpoint folder or a GGUF file.
        stored_rows: tells how many rows the embedding in a folder's weights has, where it can; asked only where
            `vocab_size` and `padded_vocab_size` disagree, as they do once a fine-tune has resized the embedding.

    Raises:
        CheckpointError: missing, not JSON, another architecture, or numbers that do not fit together.
    """
    folder = gguf_in(Path(folder))
    if is_gguf(folder):
        return _from_gguf(folder)
    require_checkpoint(folder)
    path = folder / "config.json"
    raw = read_json(path, MAX_CONFIG_BYTES)
    for part, model in _OTHER_MODELS.items():
        if raw.get(part) is not None:
            raise CheckpointError(
                f"{path}: this is a {model} checkpoint (its config has {part!r}); this server runs Qwen's text"
                " models only"
            )
    raw, remarks = _read_misspelt(raw)
    fields = _Fields(raw, path)
    config = _from_fields(fields, read_quantization(raw.get("quantization_config"), path))
    config = replace(config, remarks=(*remarks, *config.remarks))
    unpadded = fields.positive_int("vocab_size", config.vocab_size)
    if unpadded != config.vocab_size:
        both = (unpadded, config.vocab_size)
        rows = stored_rows(folder)
        config = replace(config, vocab_size=rows if rows in both else max(both))
    return config


def _from_gguf(path: Path) -> ModelConfig:
    raw, remarks, file = gguf_config(path)
    if raw["model_type"] != MODEL_TYPE:
        raise CheckpointError(f"{path}: {describe_model_type(raw['model_type'])}")
    config = _from_fields(_Fields(raw, path), None)
    kept = [kept_bytes(tensors) for tensors in tensors_by_part(file.tensors, config.num_layers)]
    stored = StoredWeights(tuple(packed for packed, _ in kept), tuple(plain for _, plain in kept))
    return replace(config, remarks=tuple(remarks), stored_weights=stored)


class _Fields:
    """Typed access to `config.json` that knows both spellings and names the file in its errors."""

    def __init__(self, raw: dict[str, Any], path: Path) -> None:
        self._raw = raw
        self.path = path

    def get(self, name: str, default: Any = None) -> Any:
        for spelling in (name, _FIRST_RELEASE_NAMES.get(name)):
            if spelling is not None and self._raw.get(spelling) is not None:
                return self._raw[spelling]
        return default

    def positive_int(self, name: str, default: int | None = None, *, at_most: int = _MAX_SIZE) -> int:
        value = self.get(name, default)
        if value is None:
            old = _FIRST_RELEASE_NAMES.get(name)
            raise CheckpointError(f"{self.path}: {name!r}{f' (or {old!r})' if old else ''} is missing")
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise CheckpointError(f"{self.path}: {name!r} must be a positive whole number, not {value!r}")
        if value > at_most:
            raise CheckpointError(
                f"{self.path}: {name!r} is {min(value, 10**300):.4g}; no such model has more than {at_most}"
            )
        return value

    def positive_float(self, name: str, default: float) -> float:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _MAX_FLOAT:
            raise CheckpointError(f"{self.path}: {name!r} must be a positive number, not {value!r}")
        return float(value)

    def flag(self, name: str, *, default: bool = False) -> bool:
        value = self.get(name, default)
        if value not in (True, False):  # 0 and 1 too, but no text: "false" would count as true
            raise CheckpointError(f"{self.path}: {name!r} must be true or false, not {value!r}")
        return bool(value)


def _from_fields(fields: _Fields, quantization: QuantizationConfig | None) -> ModelConfig:
    hidden_size = fields.positive_int("hidden_size")
    num_heads = fields.positive_int("num_attention_heads")
    head_dim = fields.positive_int("kv_channels", hidden_size // num_heads or None)
    intermediate_size = fields.positive_int("intermediate_size")
    num_layers = fields.positive_int("num_hidden_layers", at_most=_MAX_LAYERS)
    if num_heads * head_dim != hidden_size:
        raise CheckpointError(
            f"{fields.path}: num_attention_heads {num_heads} x kv_channels {head_dim} is not hidden_size {hidden_size}"
        )
    if intermediate_size % 2 or head_dim % 2:
        raise CheckpointError(f"{fields.path}: intermediate_size and kv_channels must be even")
    if fields.flag("tie_word_embeddings"):
        raise CheckpointError(f"{fields.path}: tie_word_embeddings is not part of this architecture")
    rotary_pct = fields.positive_float("rotary_pct", 1.0)
    rotary_dim = int(head_dim * rotary_pct) // 2 * 2 if rotary_pct < 1.0 else head_dim
    if rotary_pct > 1.0 or rotary_dim == 0:
        raise CheckpointError(f"{fields.path}: rotary_pct must be in (0, 1], not {rotary_pct}")
    try:
        windows = windows_of(fields.get("window_attn"), num_layers)
    except ValueError as error:
        raise CheckpointError(f"{fields.path}: 'window_attn' {error}") from error
    dtypes = [flag for flag in DTYPE_FLAGS if fields.flag(flag)]
    int8_kv_cache = fields.flag("use_cache_quantization")
    remarks = []
    if len(dtypes) > 1:
        used = DTYPE_FLAGS[dtypes[0]]
        remarks.append(f"config.json sets {' and '.join(dtypes)} at once: {used} is used; --dtype decides")
    if int8_kv_cache:
        remarks.append("config.json asks for an int8 KV cache (use_cache_quantization); --kv-cache-dtype decides")
    max_positions = fields.positive_int("max_position_embeddings", 2048)
    return ModelConfig(
        vocab_size=fields.positive_int("padded_vocab_size", fields.positive_int("vocab_size")),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        head_dim=head_dim,
        intermediate_size=intermediate_size,
        seq_length=fields.positive_int("seq_length", max_positions),
        max_positions=max_positions,
        rotary_base=fields.positive_float("rotary_emb_base", 10000.0),
        rotary_dim=rotary_dim,
        layer_norm_epsilon=fields.positive_float("layer_norm_epsilon", 1e-6),
        use_dynamic_ntk=fields.flag("use_dynamic_ntk"),
        use_logn_attn=fields.flag("use_logn_attn"),
        has_bias=not fields.flag("no_bias", default=True),
        declared_dtype=DTYPE_FLAGS[dtypes[0]] if dtypes else None,
        quantization=quantization,
        int8_kv_cache=int8_kv_cache,
        remarks=tuple(remarks),
        attention_windows=windows,
        architecture=_architecture(fields.get("architectures")),
    )


def _architecture(named: Any) -> str:
    """The first of `architectures`; files of tools that leave it out are of the published class."""
    return named[0] if isinstance(named, list) and named and isinstance(named[0], str) else PUBLISHED_CLASS


def _read_misspelt(raw: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Takes misspelt keys for what they mean, where the right one does not say otherwise; and tells so."""
    remarks = []
    for wrong, right in _MISSPELT.items():
        if raw.get(wrong) is None or raw.get(wrong) == raw.get(right):
            continue
        if raw.get(right) is None:
            raw = {**raw, right: raw[wrong]}
            remarks.append(f"config.json says {wrong!r}: taken for {right!r}")
        else:
            remarks.append(f"config.json says {wrong!r}: {raw[wrong]}, but also {right!r}: {raw[right]}, which counts")
    return raw, remarks
