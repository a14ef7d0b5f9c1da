"""What a checkpoint says of itself: `config.json` in both published spellings, read into one shape.

Pure: no tensors. Every number of the architecture comes from here; nothing is assumed from a model's name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from model.contract.attention_windows import largest_window, windows_of
from model.contract.errors import CheckpointError, ConfigError
from model.contract.files.checkpoint_folder import MODEL_TYPE, describe_model_type, gguf_in, require_checkpoint
from model.contract.files.json_file import read_json
from model.contract.files.weight_files import rows_of_embedding
from model.contract.gguf.checkpoint import gguf_config, kept_bytes, tensors_by_part
from model.contract.gguf.file import is_gguf

MAX_DEFAULT_MODEL_LEN = 32768

PUBLISHED_CLASS = "QWenLMHeadModel"

# A layer of a model is built before its weights are missed: far beyond any model, and quick to be built.
_MAX_LAYERS = 1024
_MAX_SIZE = 1 << 24

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


NO_QUANTIZATION = "none"
# How weights are quantised while they are loaded (`--quantization`): bits that one of them takes in memory, scales
# included: a float32 for 128 inputs, a scale and an offset for 64, a scale for 64.
QUANTIZED_BITS = {"int8": 8.25, "int4": 5.0, "nf4": 4.5}


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationConfig:
    """How a checkpoint was quantised (`quantization_config`, or a file of its own beside config.json).

    Attributes:
        quant_method: "gptq" or "awq".
        zero_offset: what the file's zeros are short of: 1 in the published layout, 0 in GPTQModel's "gptq_v2".
    """

    quant_method: str
    bits: int
    group_size: int
    desc_act: bool
    sym: bool
    zero_offset: int = 1


class AttentionShape(NamedTuple):
    """Heads of attention: queries have `num_heads` of `head_dim` numbers, keys and values `num_kv_heads`."""

    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def qkv_sizes(self) -> tuple[int, int, int]:
        """Numbers of a token's query, key and value, which lie side by side."""
        kv_size = self.num_kv_heads * self.head_dim
        return self.num_heads * self.head_dim, kv_size, kv_size


class StoredWeights(NamedTuple):
    """What the weights of a file whose tensors are of several types take once they are loaded.

    Attributes:
        packed_bytes: of those that stay packed: of the embedding, of each layer, and of what comes after them.
        num_plain: likewise, how many numbers are kept in the dtype that is computed in.
    """

    packed_bytes: tuple[int, ...]
    num_plain: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The architecture's numbers.

    Attributes:
        vocab_size: rows of the embedding and the output layer, padding included.
        head_dim: `kv_channels`.
        intermediate_size: as in the file: w1 and w2 have half of it each.
        seq_length: the trained length; NTK and LogN are relative to it.
        rotary_dim: how much of `head_dim` is rotated (all of it in the published checkpoints).
        declared_dtype: "bfloat16", "float16", "float32", or None when the file leaves it to the device.
        max_positions: `max_position_embeddings`: how long sequences may become; 0 where the file does not say.
        int8_kv_cache: `use_cache_quantization`: the file asks for keys and values in int8.
        stored_weights: of a GGUF file, whose tensors may be packed each in another way; else None.
        remarks: what in the file is odd, and how it was understood, a sentence each.
        attention_windows: `window_attn`: how many of the last positions each layer reads, 0 for all; nothing where
            every layer reads all.
        architecture: the class of the published code, as the file names it.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    head_dim: int
    intermediate_size: int
    seq_length: int
    rotary_base: float
    rotary_dim: int
    layer_norm_epsilon: float
    use_dynamic_ntk: bool
    use_logn_attn: bool
    has_bias: bool
    declared_dtype: str | None
    quantization: QuantizationConfig | None
    max_positions: int = 0
    int8_kv_cache: bool = False
    stored_weights: StoredWeights | None = None
    remarks: tuple[str, ...] = ()
    attention_windows: tuple[int, ...] = ()
    architecture: str = PUBLISHED_CLASS

    @classmethod
    def from_folder(
        cls, folder: str | Path, stored_rows: Callable[[Path], int | None] = rows_of_embedding
    ) -> ModelConfig:
        """Reads `config.json` (and `quantize_config.json`) of a checkpoint folder.

        Args:
            folder: of a checkpoint, or a GGUF file.
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
        raw = read_json(path)
        for part, model in _OTHER_MODELS.items():
            if raw.get(part) is not None:
                raise CheckpointError(
                    f"{path}: this is a {model} checkpoint (its config has {part!r}); this server runs Qwen's text"
                    " models only"
                )
        quantization = raw.get("quantization_config")
        for name, method in _QUANTIZATION_FILES.items():
            if quantization is None and (folder / name).exists():
                quantization = {"quant_method": method, **read_json(folder / name)}
        raw, remarks = _read_misspelt(raw)
        config = _from_raw(_Fields(raw, path), quantization)
        config = replace(config, remarks=(*remarks, *config.remarks))
        unpadded = _Fields(raw, path).positive_int("vocab_size", config.vocab_size)
        if unpadded != config.vocab_size:
            both = (unpadded, config.vocab_size)
            rows = stored_rows(folder)
            config = replace(config, vocab_size=rows if rows in both else max(both))
        return config

    def rope_alpha(self, num_prompt_tokens: int) -> float:
        """The dynamic NTK factor of a request, fixed when its prompt is known.

        `max(1, 2 ** ceil(log2(L / seq_length) + 1) - 1)`, as the published `get_ntk_alpha`; always 1 without NTK.
        """
        if not self.use_dynamic_ntk or num_prompt_tokens <= self.seq_length:
            return 1.0
        return max(1.0, float(2 ** math.ceil(math.log2(num_prompt_tokens / self.seq_length) + 1) - 1))

    def with_windows(self, windows: tuple[int, ...] | None) -> ModelConfig:
        """The same with other windows.

        Args:
            windows: of `--attention-window`: one number, or one a layer; None leaves those of the file.

        Raises:
            ConfigError: there are more or fewer.
        """
        if windows is None:
            return self
        try:
            return replace(self, attention_windows=windows_of(windows, self.num_layers))
        except ValueError as error:
            raise ConfigError(f"--attention-window {error}") from error

    @property
    def largest_window(self) -> int | None:
        """How many of the last positions some layer reads; None where one of them reads all."""
        return largest_window(self.attention_windows)

    @property
    def attention_shape(self) -> AttentionShape:
        """Every head of these checkpoints has keys and values of its own."""
        return AttentionShape(self.num_heads, self.num_heads, self.head_dim)

    @property
    def default_max_model_len(self) -> int:
        """What the file declares; with dynamic NTK four times the trained length if that is more; at most 32768."""
        reached = 4 * self.seq_length if self.use_dynamic_ntk else self.seq_length
        return max(self.seq_length, min(max(reached, self.max_positions), MAX_DEFAULT_MODEL_LEN))


def _from_gguf(path: Path) -> ModelConfig:
    raw, remarks, file = gguf_config(path)
    if raw["model_type"] != MODEL_TYPE:
        raise CheckpointError(f"{path}: {describe_model_type(raw['model_type'])}")
    config = _from_raw(_Fields(raw, path), None)
    kept = [kept_bytes(tensors) for tensors in tensors_by_part(file.tensors, config.num_layers)]
    stored = StoredWeights(tuple(packed for packed, _ in kept), tuple(plain for _, plain in kept))
    return replace(config, remarks=tuple(remarks), stored_weights=stored)


def require_can_quantize(config: ModelConfig, at_load: str) -> None:
    """Refuses to quantise at load what is quantised already.

    Args:
        config: of the checkpoint.
        at_load: a key of `QUANTIZED_BITS`, or `NO_QUANTIZATION`.

    Raises:
        ConfigError: it is, or there is no such way.
    """
    if at_load == NO_QUANTIZATION:
        return
    if at_load not in QUANTIZED_BITS:
        raise ConfigError(f"unknown quantization {at_load!r}; use one of {', '.join(QUANTIZED_BITS)}")
    kind = None if config.quantization is None else f"{config.quantization.quant_method.upper()}"
    if config.stored_weights is not None and any(config.stored_weights.packed_bytes):
        kind = "GGUF"
    if kind is not None:
        raise ConfigError(
            f"--quantization {at_load}: this checkpoint is quantised already ({kind}); serve it without, or the one"
            " that it was made from"
        )


class _Fields:
    """Typed access to `config.json` that knows both spellings and names the file in its errors."""

    def __init__(self, raw: dict[str, Any], path: Path) -> None:
        self.raw = raw
        self.path = path

    def get(self, name: str, default: Any = None) -> Any:
        for spelling in (name, _FIRST_RELEASE_NAMES.get(name)):
            if spelling is not None and self.raw.get(spelling) is not None:
                return self.raw[spelling]
        return default

    def positive_int(self, name: str, default: int | None = None, *, at_most: int = _MAX_SIZE) -> int:
        value = self.get(name, default)
        if value is None:
            old = _FIRST_RELEASE_NAMES.get(name)
            raise CheckpointError(f"{self.path}: {name!r}{f' (or {old!r})' if old else ''} is missing")
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise CheckpointError(f"{self.path}: {name!r} must be a positive whole number, not {value!r}")
        if value > at_most:
            raise CheckpointError(f"{self.path}: {name!r} is {value:.4g}; no such model has more than {at_most}")
        return value

    def positive_float(self, name: str, default: float) -> float:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise CheckpointError(f"{self.path}: {name!r} must be a positive number, not {value!r}")
        return float(value)


def _from_raw(fields: _Fields, quantization: Any) -> ModelConfig:
    hidden_size = fields.positive_int("hidden_size")
    num_heads = fields.positive_int("num_attention_heads")
    head_dim = fields.positive_int("kv_channels", hidden_size // num_heads or None)
    intermediate_size = fields.positive_int("intermediate_size")
    if num_heads * head_dim != hidden_size:
        raise CheckpointError(
            f"{fields.path}: num_attention_heads {num_heads} x kv_channels {head_dim} is not hidden_size {hidden_size}"
        )
    if intermediate_size % 2 or head_dim % 2:
        raise CheckpointError(f"{fields.path}: intermediate_size and kv_channels must be even")
    if fields.get("tie_word_embeddings", False):
        raise CheckpointError(f"{fields.path}: tie_word_embeddings is not part of this architecture")
    rotary_pct = fields.positive_float("rotary_pct", 1.0)
    if rotary_pct > 1.0:
        raise CheckpointError(f"{fields.path}: rotary_pct must be in (0, 1], not {rotary_pct}")
    return ModelConfig(
        vocab_size=fields.positive_int("padded_vocab_size", fields.positive_int("vocab_size")),
        hidden_size=hidden_size,
        num_layers=fields.positive_int("num_hidden_layers", at_most=_MAX_LAYERS),
        num_heads=num_heads,
        head_dim=head_dim,
        intermediate_size=intermediate_size,
        seq_length=fields.positive_int("seq_length", fields.positive_int("max_position_embeddings", 2048)),
        max_positions=fields.positive_int("max_position_embeddings", 2048),
        rotary_base=fields.positive_float("rotary_emb_base", 10000.0),
        rotary_dim=head_dim if rotary_pct == 1.0 else int(head_dim * rotary_pct) // 2 * 2,
        layer_norm_epsilon=fields.positive_float("layer_norm_epsilon", 1e-6),
        use_dynamic_ntk=bool(fields.get("use_dynamic_ntk", False)),
        use_logn_attn=bool(fields.get("use_logn_attn", False)),
        has_bias=not fields.get("no_bias", True),
        declared_dtype=_declared_dtype(fields),
        quantization=_quantization(quantization, fields.path),
        int8_kv_cache=fields.get("use_cache_quantization") is True,
        remarks=(*_dtype_remarks(fields), *_cache_remarks(fields)),
        attention_windows=_windows(fields),
        architecture=_architecture(fields),
    )


def _architecture(fields: _Fields) -> str:
    """The first of `architectures`; files of tools that leave it out are of the published class."""
    named = fields.get("architectures")
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


def _windows(fields: _Fields) -> tuple[int, ...]:
    try:
        return windows_of(fields.get("window_attn"), fields.positive_int("num_hidden_layers", at_most=_MAX_LAYERS))
    except ValueError as error:
        raise CheckpointError(f"{fields.path}: 'window_attn' {error}") from error


_DTYPE_FLAGS = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def _declared_dtype(fields: _Fields) -> str | None:
    return next((dtype for flag, dtype in _DTYPE_FLAGS.items() if fields.get(flag, False)), None)


def _dtype_remarks(fields: _Fields) -> tuple[str, ...]:
    flags = [flag for flag in _DTYPE_FLAGS if fields.get(flag, False)]
    if len(flags) < 2:
        return ()
    return (f"config.json sets {' and '.join(flags)} at once: {_DTYPE_FLAGS[flags[0]]} is used; --dtype decides",)


def _cache_remarks(fields: _Fields) -> tuple[str, ...]:
    if fields.get("use_cache_quantization") is not True:
        return ()
    return ("config.json asks for an int8 KV cache (use_cache_quantization); --kv-cache-dtype decides",)


# Where older tools wrote what stands in config.json's quantization_config today.
_QUANTIZATION_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
# Of GPTQ's two layouts; AWQ's zeros are stored as they are.
_ZERO_OFFSETS = {"gptq": 1, "gptq_v2": 0}
_AWQ_LAYOUT = "gemm"


def _quantization(raw: Any, path: Path) -> QuantizationConfig | None:
    if raw is None:
        return None
    method = raw.get("quant_method", "gptq") if isinstance(raw, dict) else raw
    if method == "fp8" or (method == "compressed-tensors" and raw.get("format") == "float-quantized"):
        return None  # numbers and their scales; see model.execution.fp8
    if not isinstance(raw, dict) or method not in ("gptq", "awq"):
        remedy = "; load what it was made from with --quantization" if str(method).startswith("bitsandbytes") else ""
        raise CheckpointError(
            f"{path}: quantisation {method!r} is not supported; GPTQ and AWQ checkpoints are, and FP8 and GGUF files"
            f"{remedy}"
        )
    try:
        return _awq(raw, path) if method == "awq" else _gptq(raw, path)
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise CheckpointError(f"{path}: quantization_config is incomplete or malformed ({e!r})") from e


def _gptq(raw: dict[str, Any], path: Path) -> QuantizationConfig:
    # In the config.json of a checkpoint, and in a file of its own.
    layout = raw.get("checkpoint_format") or raw.get("format") or "gptq"
    if not isinstance(layout, str) or layout not in _ZERO_OFFSETS:
        known = " and ".join(map(repr, _ZERO_OFFSETS))
        raise CheckpointError(f"{path}: GPTQ in the format {layout!r} is not supported; {known} are")
    return QuantizationConfig(
        quant_method="gptq",
        bits=int(raw["bits"]),
        group_size=int(raw.get("group_size", -1)),
        desc_act=bool(raw.get("desc_act", False)),
        sym=bool(raw.get("sym", True)),
        zero_offset=_ZERO_OFFSETS[layout],
    )


def _awq(raw: dict[str, Any], path: Path) -> QuantizationConfig:
    """AutoAWQ's names, and those that transformers gives the same numbers."""
    layout = raw.get("version") or raw.get("format") or _AWQ_LAYOUT
    if str(layout).lower() != _AWQ_LAYOUT:
        raise CheckpointError(f"{path}: AWQ in the version {layout!r} is not supported; {_AWQ_LAYOUT!r} is")
    left_out = raw.get("modules_to_not_convert")
    if left_out and set(left_out) - {"lm_head"}:
        raise CheckpointError(
            f"{path}: AWQ that leaves {', '.join(map(str, left_out))} unquantised is not supported; all linears of the"
            " blocks must be quantised"
        )
    bits = raw["bits"] if "bits" in raw else raw["w_bit"]
    group_size = raw["group_size"] if "group_size" in raw else raw["q_group_size"]
    return QuantizationConfig(
        quant_method="awq",
        bits=int(bits),
        group_size=int(group_size),
        desc_act=False,
        sym=not raw.get("zero_point", True),
        zero_offset=0,
    )
