"""`config.json` and `generation_config.json` of transformers' Qwen2 for a published checkpoint, and the way back.

Pure. What that layout has no word for (the trained length beside the context, dynamic NTK, LogN, the chat format) goes
along under one key of its own, which transformers keeps when it saves the model again, so that the way back finds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.contract.config import DTYPE_FLAGS, ModelConfig
from model.contract.errors import CheckpointError
from model.contract.files.checkpoint_folder import CONVERTED_KEY
from model.contract.files.json_file import read_generation_config, read_json

_NOT_KEPT = ("auto_map", "quantization_config", "transformers_version", "torch_dtype", "dtype")
# Keys of generation_config.json that both know; without sampling transformers warns of the second ones.
_SHARED = ("do_sample", "max_new_tokens", "repetition_penalty")
_SAMPLING = ("top_p", "top_k", "temperature")


def qwen2_config(
    config: ModelConfig, raw: Mapping[str, Any], generation: Mapping[str, Any], *, dtype: str, ids: Mapping[str, int]
) -> dict[str, Any]:
    """Makes `config.json` of the Qwen2 layout.

    Args:
        raw: the published config.json.
        generation: the published generation_config.json.
        dtype: dtype of the weights.
        ids: token ids of "endoftext" and of "end", which ends a reply.

    Raises:
        CheckpointError: the layout cannot say what the checkpoint is.
    """
    if config.rotary_dim != config.head_dim:
        raise CheckpointError(
            f"rotates {config.rotary_dim} of {config.head_dim} dimensions (rotary_pct); transformers' Qwen2 rotates all"
        )
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "intermediate_size": config.intermediate_size // 2,
        "hidden_act": "silu",
        # Beyond the trained length the original has NTK and LogN, and this layout has neither.
        "max_position_embeddings": config.seq_length,
        "rms_norm_eps": config.layer_norm_epsilon,
        "rope_theta": config.rotary_base,
        "attention_dropout": 0.0,
        "initializer_range": raw.get("initializer_range", 0.02),
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "use_cache": True,
        "vocab_size": config.vocab_size,
        "torch_dtype": dtype,
        "bos_token_id": ids["endoftext"],
        "eos_token_id": ids["end"],
        "pad_token_id": ids["endoftext"],
        CONVERTED_KEY: {
            "config": {key: value for key, value in raw.items() if key not in _NOT_KEPT},
            "generation_config": dict(generation),
        },
    }


def qwen2_generation_config(generation: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, Any]:
    """Makes `generation_config.json` of the Qwen2 layout from the published one; `ids` as for `qwen2_config`."""
    kept = _SHARED + (_SAMPLING if generation.get("do_sample") else ())
    return {
        "bos_token_id": ids["endoftext"],
        "pad_token_id": ids["endoftext"],
        "eos_token_id": list(dict.fromkeys((ids["end"], ids["endoftext"]))),
        **{key: generation[key] for key in kept if generation.get(key) is not None},
    }


class Qwen2Source:
    """The configuration of a checkpoint in the Qwen2 layout, read for the way back.

    Attributes:
        is_tied: whether the output layer is the embedding.

    Raises:
        CheckpointError: it is none, or computes what a first-generation checkpoint cannot.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "config.json"
        self._raw = read_json(self._path)
        self._refuse_other_models()
        original = _object(self._raw.get(CONVERTED_KEY))
        self._original = _object(original.get("config"))
        self._original_generation = _object(original.get("generation_config"))
        self._generation = read_generation_config(folder)
        self.is_tied = bool(self._raw.get("tie_word_embeddings", False))

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return self._int("num_hidden_layers")

    @property
    def hidden_size(self) -> int:
        """Width of the model's hidden states."""
        return self._int("hidden_size")

    def published(self, *, vocab_size: int, dtype: str) -> dict[str, Any]:
        """Makes `config.json` of the published layout.

        Args:
            vocab_size: rows of the embedding.
            dtype: dtype of the weights.
        """
        trained = self._int("max_position_embeddings")
        base = self._raw.get("rope_theta") or _object(self._raw.get("rope_parameters")).get("rope_theta") or 10000.0
        defaults = {
            "seq_length": trained,
            "max_position_embeddings": trained,
            "use_dynamic_ntk": False,
            "use_logn_attn": False,
            "rotary_pct": 1.0,
            "no_bias": True,
            "scale_attn_weights": True,
            "use_cache": True,
            "initializer_range": self._raw.get("initializer_range", 0.02),
        }
        # Both spellings of a size must not stand side by side.
        first_release = ("n_embd", "n_layer", "n_head", "ffn_hidden_size")
        kept = {key: value for key, value in self._original.items() if key not in first_release}
        if "n_positions" in kept:
            kept["max_position_embeddings"] = kept.pop("n_positions")
        kept.pop("padded_vocab_size", None)
        return {
            **defaults,
            **kept,
            "architectures": ["QWenLMHeadModel"],
            "model_type": "qwen",
            "tokenizer_class": "QWenTokenizer",
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self._int("num_attention_heads"),
            "kv_channels": self.hidden_size // self._int("num_attention_heads"),
            "intermediate_size": 2 * self._int("intermediate_size"),
            "rotary_emb_base": base,
            "layer_norm_epsilon": self._raw.get("rms_norm_eps", 1e-6),
            "vocab_size": vocab_size,
            "tie_word_embeddings": False,
            **{flag: name == dtype for flag, name in DTYPE_FLAGS.items()},
        }

    def published_generation(self, ids: Mapping[str, int]) -> dict[str, Any]:
        """Makes `generation_config.json` of the published layout; `ids` has the tokens "endoftext" and "im_end"."""
        ends = self._generation.get("eos_token_id", self._raw.get("eos_token_id"))
        chats = ids["im_end"] in (ends if isinstance(ends, list) else [ends])
        found = {key: self._generation[key] for key in (*_SHARED, *_SAMPLING) if self._generation.get(key) is not None}
        defaults = {
            "chat_format": "chatml" if chats else "raw",
            "eos_token_id": ids["im_end"] if chats else ids["endoftext"],
            "pad_token_id": ids["endoftext"],
        }
        return {**defaults, **self._original_generation, **found}

    def _refuse_other_models(self) -> None:
        raw = self._raw
        if raw.get("model_type") != "qwen2":
            raise CheckpointError(
                f"{self._path}: model_type is {raw.get('model_type')!r}; what `--to qwen` takes is transformers' Qwen2"
            )
        heads = self._int("num_attention_heads")
        scaling = _object(raw.get("rope_scaling") or raw.get("rope_parameters"))
        reason = None
        if raw.get("num_key_value_heads", heads) != heads:
            reason = "it groups queries (num_key_value_heads), so it is of a later generation"
        elif raw.get("quantization_config") is not None:
            reason = "it is quantised; start from the unquantised model"
        elif raw.get("use_sliding_window"):
            reason = "it attends within a sliding window"
        elif scaling.get("rope_type", scaling.get("type", "default")) != "default":
            reason = "it scales its positions (rope_scaling)"
        elif raw.get("hidden_act", "silu") != "silu" or self.hidden_size % heads:
            reason = "its numbers are none of this architecture"
        elif raw.get("head_dim", self.hidden_size // heads) not in (None, self.hidden_size // heads):
            reason = "its heads do not add up to hidden_size"
        if reason:
            raise CheckpointError(f"{self._path}: the published layout cannot say this model: {reason}")

    def _int(self, name: str) -> int:
        value = self._raw.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise CheckpointError(f"{self._path}: {name!r} must be a positive whole number, not {value!r}")
        return value


def _object(value: Any) -> dict[str, Any]:
    """Returns a value that is an object; an empty one for any other."""
    return value if isinstance(value, dict) else {}


def without_quantization(raw: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Makes config.json of a published checkpoint whose weights are plain numbers of a dtype now."""
    kept = {key: value for key, value in raw.items() if key not in ("quantization_config", "torch_dtype", "dtype")}
    return {**kept, **{flag: name == dtype for flag, name in DTYPE_FLAGS.items()}}


def published_raw(folder: Path, config: ModelConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads config.json, with its spelling mended as in `config`, and generation_config.json, which may be absent."""
    raw = read_json(folder / "config.json")
    raw |= {"use_dynamic_ntk": config.use_dynamic_ntk, "use_logn_attn": config.use_logn_attn}
    return raw, read_generation_config(folder)
