"""`qwen-server memory`: from a checkpoint's name to tables; the arithmetic is model/contract/memory_plan.py's."""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from model.contract.config import NO_QUANTIZATION, ModelConfig
from model.contract.errors import CheckpointError
from model.contract.files.model_config import read_model_config
from model.contract.files.safetensors_header import read_header
from model.contract.files.weight_files import find_weight_files
from model.contract.gguf.file import is_gguf, read_gguf
from model.contract.memory_plan import MemoryPlan, plan_memory
from server.hubs.download import Hub
from server.hubs.resolve import describe_checkpoint, local_folder
from server.wire.errors import dump_json
from tools.memory.published_shapes import CARD_FIGURES, PUBLISHED_NAMES, published_shape, short_name

_GIB = 1 << 30
_USUAL_DEVICES = (8, 16, 24, 40, 48, 80, 141)  # GiB
_LENGTHS = (1024, 2048, 8192)
_BATCHES = (1, 8, 32)
_CARD_CASES = {"2048 in": (2048, 1), "8192 out": (1, 8192)}


class Checkpoint(NamedTuple):
    """The checkpoint that is looked at.

    Attributes:
        name: as given, or that of the published shape.
        config: its numbers.
        file_bytes: bytes of the tensors in its files; None where there are no such files at hand.
    """

    name: str
    config: ModelConfig
    file_bytes: int | None


def report(arguments: argparse.Namespace) -> int:
    """Prints the tables; returns the exit status.

    Raises:
        CheckpointError: there is no such checkpoint, or it is broken.
        ConfigError: it cannot be split over so many devices.
    """
    checkpoint = find_checkpoint(arguments.model, arguments.hub, arguments.revision)
    checkpoint = checkpoint._replace(config=checkpoint.config.with_windows(arguments.attention_window))
    plan = plan_memory(
        checkpoint.config,
        dtype=arguments.dtype,
        kv_cache_dtype=arguments.kv_cache_dtype,
        block_size=arguments.block_size,
        at_load=arguments.quantization,
        num_ranks=arguments.tensor_parallel_size,
        num_stages=arguments.pipeline_parallel_size,
    )
    plan = replace(plan, max_num_batched_tokens=arguments.max_num_batched_tokens)
    figures = reckon(checkpoint, plan, arguments)
    print(dump_json(figures).decode() if arguments.json else _text(figures))
    return 0


def find_checkpoint(name: str, hub: Hub = "huggingface", revision: str | None = None) -> Checkpoint:
    """Reads config and headers of a folder or hub id, or looks up a published shape.

    Raises:
        CheckpointError: there is none, or it is broken.
    """
    shape = None if revision or local_folder(name) is not None else published_shape(name)
    if shape is not None:
        return Checkpoint(short_name(name), shape, None)
    folder = describe_checkpoint(name, f"nor one of {', '.join(PUBLISHED_NAMES)}", hub, revision)
    files: list[Path] = []
    with contextlib.suppress(CheckpointError):  # of a hub id the weights need not be here
        files = [path for path in find_weight_files(folder) if path.suffix == ".safetensors"]
    num_bytes = sum(info.num_bytes for file in files for info in read_header(file).values())
    if is_gguf(folder):
        num_bytes = sum(tensor.num_bytes for tensor in read_gguf(folder).tensors.values())
    return Checkpoint(name, read_model_config(folder), num_bytes or None)


def reckon(checkpoint: Checkpoint, plan: MemoryPlan, arguments: argparse.Namespace) -> dict[str, Any]:
    """Computes all figures."""
    config = checkpoint.config
    max_len = arguments.max_model_len or config.default_max_model_len
    lengths = sorted({length for length in _LENGTHS if length < max_len} | {max_len})
    devices = arguments.device_memory or [gib * _GIB for gib in _USUAL_DEVICES]
    own = config.quantization
    kinds: dict[str, MemoryPlan] = {
        "16 bits" if plan.dtype != "float32" else "32 bits": plan.quantized(None),
        "Int8": plan.quantized(8),
        "Int4": plan.quantized(4),
    }
    if plan.at_load != NO_QUANTIZATION:
        kinds = {plan.at_load: plan, **kinds}
    elif config.stored_weights is not None:
        kinds = {"GGUF": plan, **kinds}
    return {
        "model": checkpoint.name,
        "quantization": None if own is None else {"bits": own.bits, "group_size": own.group_size},
        "quant_method": "gguf" if config.stored_weights is not None else None if own is None else own.quant_method,
        "quantization_at_load": None if plan.at_load == NO_QUANTIZATION else plan.at_load,
        "tensor_parallel_size": plan.num_ranks,
        "pipeline_parallel_size": plan.num_stages,
        "layers_of_stages": [len(layers) for layers in plan.layers_of_stages],
        "dtype": plan.dtype,
        "kv_cache_dtype": plan.kv_dtype,
        "block_size": plan.block_size,
        "file_bytes": checkpoint.file_bytes,
        "weights_bytes": plan.weights_bytes,
        "kv_cache_bytes_per_token": plan.kv_token_bytes,
        "kv_cache_bytes_per_block": plan.kv_block_bytes,
        "activation_bytes": plan.activation_bytes(plan.max_num_batched_tokens, arguments.max_num_seqs),
        "adapter_bytes": plan.adapter_bytes(arguments.max_lora_rank),
        "max_lora_rank": arguments.max_lora_rank,
        "max_loras": arguments.max_loras or 0,
        "attention_windows": list(config.attention_windows) or None,
        "max_model_len": max_len,
        "max_num_seqs": arguments.max_num_seqs,
        "max_num_batched_tokens": plan.max_num_batched_tokens,
        "gpu_memory_utilization": arguments.gpu_memory_utilization,
        "devices": [_device(plan, size, lengths, arguments) for size in devices],
        "peak": [_peak(name, checkpoint, kind, batch, own=plan) for name, kind in kinds.items() for batch in _BATCHES],
    }


def _device(plan: MemoryPlan, size: int, lengths: list[int], arguments: argparse.Namespace) -> dict[str, Any]:
    usable = int(size * arguments.gpu_memory_utilization)
    usable -= (arguments.max_loras or 0) * plan.adapter_bytes(arguments.max_lora_rank)
    blocks = plan.blocks_that_fit(usable, arguments.max_num_seqs)
    fits = blocks >= 1
    return {
        "device_bytes": size,
        "missing_bytes": 0 if fits else (1 - blocks) * plan.kv_block_bytes,
        "blocks": max(0, blocks),
        "tokens": max(0, blocks) * plan.block_size,
        "sequences": {str(length): max(0, blocks) // plan.blocks_of(length) for length in lengths},
    }


def _peak(kind: str, checkpoint: Checkpoint, plan: MemoryPlan, batch: int, *, own: MemoryPlan) -> dict[str, Any]:
    quantization = plan.config.quantization
    name = checkpoint.name.removesuffix("-int4").removesuffix("-int8")
    card = CARD_FIGURES.get((name, None if quantization is None else quantization.bits)) if batch == 1 else None
    return {
        "weights": kind,
        "is_own": (plan.config, plan.at_load) == (own.config, own.at_load),
        "batch": batch,
        **{case: plan.peak_bytes(batch, *tokens) for case, tokens in _CARD_CASES.items()},
        "card_gb": card,
    }


def _text(f: dict[str, Any]) -> str:
    own = f["quantization"]
    plain = f"GGUF; activations {f['dtype']}" if f["quant_method"] == "gguf" else f["dtype"]
    kind = plain
    if f["quantization_at_load"] is not None:
        kind = f"{f['quantization_at_load']} at load; the rest {f['dtype']}"
    elif own is not None:
        kind = f"{f['quant_method'].upper()} Int{own['bits']}, group {own['group_size']}; the rest {f['dtype']}"
    lines = [f"{f['model']} ({kind})", ""]
    num_devices = f["tensor_parallel_size"] * f["pipeline_parallel_size"]
    if f["pipeline_parallel_size"] > 1:
        layers = " + ".join(map(str, f["layers_of_stages"]))
        lines[0] += f", the largest part of {num_devices} devices ({layers} layers)"
    elif num_devices > 1:
        lines[0] += f", its part on each of {num_devices} devices"
    if f["attention_windows"]:
        lines[0] += f", {_windows_text(f['attention_windows'])}"
    beside = "weights and adapters" if f["max_loras"] else "the weights"
    in_files = "" if f["file_bytes"] is None else f", {_gb(f['file_bytes'])} in its files"
    lines += [
        f"weights          {_gb(f['weights_bytes'])}{in_files}",
        f"KV cache         {f['kv_cache_bytes_per_token']:,} bytes a token, {f['kv_cache_bytes_per_block']:,} a block "
        f"of {f['block_size']} ({f['kv_cache_dtype']})",
        f"activations      {_gb(f['activation_bytes'])} at most in a step of {f['max_num_batched_tokens']} tokens "
        f"and {f['max_num_seqs']} sequences (estimate)",
        f"LoRA adapters    {_gb(f['adapter_bytes'])} each at rank {f['max_lora_rank']} (all linears)"
        + (f", {_gb(f['max_loras'] * f['adapter_bytes'])} for {f['max_loras']}" if f["max_loras"] else ""),
        "",
        f"What fits beside {beside} in {f['gpu_memory_utilization']:.0%} of a device:",
        *_devices_table(f["devices"]),
        "",
        "Peak GB when all of a batch are at their end (without the device's own runtime):",
        *_peak_table(f["peak"]),
    ]
    return "\n".join(lines)


def _windows_text(windows: list[int]) -> str:
    if not all(windows):
        return f"{sum(map(bool, windows))} of {len(windows)} layers with windows (all positions stay cached)"
    least, most = min(windows), max(windows)
    return f"windows of {most if least == most else f'{least} to {most}'} tokens"


def _devices_table(devices: list[dict[str, Any]]) -> list[str]:
    lengths = list(devices[0]["sequences"])
    lines = [f"{'device':>10}{'tokens':>12}" + "".join(f"{'x ' + length:>10}" for length in lengths)]
    for device in devices:
        size = f"{device['device_bytes'] / _GIB:.4g} GiB"
        if device["missing_bytes"]:
            lines.append(f"{size:>10}   does not fit: {_gb(device['missing_bytes'])} more are needed")
            continue
        counts = "".join(f"{count:>10,}" for count in device["sequences"].values())
        lines.append(f"{size:>10}{device['tokens']:>12,}{counts}")
    return [*lines, "(x 2048: sequences of 2048 tokens at once)"]


def _peak_table(rows: list[dict[str, Any]]) -> list[str]:
    with_card = any(row["card_gb"] for row in rows)
    head = f"{'weights':>10}{'batch':>7}" + "".join(f"{case:>12}" for case in _CARD_CASES)
    lines = [head + ("   published card, one stream" if with_card else "")]
    for row in rows:
        name = row["weights"] + (" *" if row["is_own"] else "")
        line = f"{name:>10}{row['batch']:>7}" + "".join(f"{row[case] / 1e9:>12.2f}" for case in _CARD_CASES)
        if row["card_gb"]:
            line += "   " + " / ".join("-" if figure is None else f"{figure:.1f}" for figure in row["card_gb"])
        lines.append(line)
    return [*lines, "(* this checkpoint; the others: the same architecture with such weights)"]


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.2f} MB"
