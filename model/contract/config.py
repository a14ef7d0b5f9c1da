"""The numbers of a checkpoint's architecture; `files.model_config` reads them.

Pure: no tensors, no files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from model.contract.attention_windows import largest_window, windows_of
from model.contract.errors import ConfigError

MAX_DEFAULT_MODEL_LEN = 32768

PUBLISHED_CLASS = "QWenLMHeadModel"

# A flag of config.json -> the dtype that it declares.
DTYPE_FLAGS = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}

NO_QUANTIZATION = "none"
# How weights are quantised while they are loaded (`--quantization`): bits that a weight takes in memory, scales
# included: a float32 for 128 inputs, a scale and an offset for 64, a scale for 64.
QUANTIZED_BITS = {"int8": 8.25, "int4": 5.0, "nf4": 4.5}


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationConfig:
    """How a checkpoint was quantised.

    Attributes:
        quant_method: "gptq" or "awq".
        desc_act: groups are in the order of importance, so that files must tell each input's (`g_idx`).
        zero_offset: what the stored zeros lack: 1 in the published layout, 0 in GPTQModel's "gptq_v2" and AWQ.
    """

    quant_method: str
    bits: int
    group_size: int
    desc_act: bool = False
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
    """What a GGUF file's weights take in memory: one entry for the embedding, one a layer, one for the rest.

    Attributes:
        packed_bytes: bytes of the weights that stay packed.
        num_plain: count of the numbers that are kept in the activations' dtype.
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
        max_positions: `max_position_embeddings`, the longest sequence; 0 where the file does not say.
        int8_kv_cache: `use_cache_quantization`: the file asks for keys and values in int8.
        stored_weights: set for a GGUF file, whose tensors may each be packed in another way.
        remarks: what is odd in the file and how it was understood, a sentence each.
        attention_windows: `window_attn`: how many of the last positions each layer reads, 0 for all; empty where
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

    def rope_alpha(self, num_prompt_tokens: int) -> float:
        """The dynamic NTK factor of a request, fixed when its prompt is known.

        `max(1, 2 ** ceil(log2(L / seq_length) + 1) - 1)`, as the published `get_ntk_alpha`; always 1 without NTK.
        """
        if not self.use_dynamic_ntk or num_prompt_tokens <= self.seq_length:
            return 1.0
        return max(1.0, float(2 ** math.ceil(math.log2(num_prompt_tokens / self.seq_length) + 1) - 1))

    def with_windows(self, windows: tuple[int, ...] | None) -> ModelConfig:
        """Replaces the windows by those of `--attention-window`: one number, or one a layer; None changes nothing.

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
        """See `attention_windows.largest_window`."""
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


def require_can_quantize(config: ModelConfig, at_load: str) -> None:
    """Refuses to quantise a checkpoint while it is loaded if it is quantised already.

    Args:
        at_load: a key of `QUANTIZED_BITS`, or `NO_QUANTIZATION`.

    Raises:
        ConfigError: it is, or `at_load` is unknown.
    """
    if at_load == NO_QUANTIZATION:
        return
    if at_load not in QUANTIZED_BITS:
        raise ConfigError(f"unknown quantization {at_load!r}; use one of {', '.join(QUANTIZED_BITS)}")
    kind = None if config.quantization is None else config.quantization.quant_method.upper()
    if config.stored_weights is not None and any(config.stored_weights.packed_bytes):
        kind = "GGUF"
    if kind is not None:
        raise ConfigError(
            f"--quantization {at_load}: this checkpoint is quantised already ({kind}); serve it without, or the one"
            " that it was made from"
        )
