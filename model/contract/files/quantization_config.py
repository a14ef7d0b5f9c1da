"""Reads how a checkpoint was quantised: `quantization_config` of config.json, or a file of its own beside it.

Pure: no tensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model.contract.config import QuantizationConfig
from model.contract.errors import CheckpointError
from model.contract.files.json_file import MAX_CONFIG_BYTES, read_json

# Where older tools wrote what stands in config.json's quantization_config today.
_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
# Of GPTQ's two layouts; AWQ's zeros are stored as they are.
_ZERO_OFFSETS = {"gptq": 1, "gptq_v2": 0}
_AWQ_LAYOUT = "gemm"
_BITS = {"gptq": (4, 8), "awq": (4,)}


def read_quantization(raw: Any, path: Path) -> QuantizationConfig | None:
    """Reads how the linears of a checkpoint are packed.

    Args:
        raw: `quantization_config` of config.json; None looks for a file of its own.
        path: the config.json, which messages name.

    Returns:
        None where they are numbers, of whatever dtype.

    Raises:
        CheckpointError: it is malformed, or a kind that is not read.
    """
    for name, method in _FILES.items():
        if raw is None and (path.parent / name).exists():
            raw = {"quant_method": method, **read_json(path.parent / name, MAX_CONFIG_BYTES)}
    if raw is None:
        return None
    fields = raw if isinstance(raw, dict) else {}
    method = fields.get("quant_method", "gptq") if isinstance(raw, dict) else raw
    if method == "fp8" or (method == "compressed-tensors" and fields.get("format") == "float-quantized"):
        return None  # numbers and their scales; see model.execution.fp8
    if not fields or method not in ("gptq", "awq"):
        remedy = "; load what it was made from with --quantization" if str(method).startswith("bitsandbytes") else ""
        raise CheckpointError(
            f"{path}: quantisation {method!r} is not supported; GPTQ and AWQ checkpoints are, and FP8 and GGUF files"
            f"{remedy}"
        )
    try:
        config = _awq(fields, path) if method == "awq" else _gptq(fields, path)
    except (KeyError, ValueError) as e:
        raise CheckpointError(f"{path}: quantization_config is incomplete or malformed ({e!r})") from e
    if config.bits not in _BITS[method]:
        known = " and ".join(map(str, _BITS[method]))
        raise CheckpointError(f"{path}: {method.upper()} with {config.bits} bits is not supported; {known} are")
    if config.group_size != -1 and config.group_size <= 0:
        raise CheckpointError(
            f"{path}: {method.upper()} with group_size {config.group_size} is not supported; use -1 or above 0"
        )
    return config


def _gptq(raw: dict[str, Any], path: Path) -> QuantizationConfig:
    # In the config.json of a checkpoint, and in a file of its own.
    layout = raw.get("checkpoint_format") or raw.get("format") or "gptq"
    if not isinstance(layout, str) or layout not in _ZERO_OFFSETS:
        known = " and ".join(map(repr, _ZERO_OFFSETS))
        raise CheckpointError(f"{path}: GPTQ in the format {layout!r} is not supported; {known} are")
    return QuantizationConfig(
        quant_method="gptq",
        bits=_whole(raw, "bits"),
        group_size=_whole({"group_size": -1} | raw, "group_size"),
        desc_act=_flag(raw, "desc_act"),
        zero_offset=_ZERO_OFFSETS[layout],
    )


def _awq(raw: dict[str, Any], path: Path) -> QuantizationConfig:
    """Reads AutoAWQ's names, and those that transformers gives the same numbers."""
    layout = raw.get("version") or raw.get("format") or _AWQ_LAYOUT
    if str(layout).lower() != _AWQ_LAYOUT:
        raise CheckpointError(f"{path}: AWQ in the version {layout!r} is not supported; {_AWQ_LAYOUT!r} is")
    left_out = raw.get("modules_to_not_convert") or []
    if not isinstance(left_out, list):
        raise ValueError(f"modules_to_not_convert is {left_out!r}, not a list")
    if any(name != "lm_head" for name in left_out):
        raise CheckpointError(
            f"{path}: AWQ that leaves {', '.join(map(str, left_out))} unquantised is not supported; all linears of the"
            " blocks must be quantised"
        )
    return QuantizationConfig(
        quant_method="awq",
        bits=_whole(raw, "bits" if "bits" in raw else "w_bit"),
        group_size=_whole(raw, "group_size" if "group_size" in raw else "q_group_size"),
        zero_offset=0,
    )


def _whole(raw: dict[str, Any], name: str) -> int:
    value = raw[name]
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > 1 << 24:
        raise ValueError(f"{name} is {value!r}, not a whole number")
    return value


def _flag(raw: dict[str, Any], name: str) -> bool:
    value = raw.get(name)
    if not isinstance(value, bool | None):
        raise ValueError(f"{name} is {value!r}, neither true nor false")
    return bool(value)
