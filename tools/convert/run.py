"""Writes a checkpoint in the other layout: `python -m tools.convert.run MODEL OUT --to qwen2|qwen`.

`qwen-server convert` is this module in the place of its own process. A block at a time: what is in memory is one block,
expanded if it was quantised, and up to a shard of results.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from model.contract.errors import CheckpointError
from model.contract.files.linears import QWEN2_LINEARS
from model.contract.files.vocabulary import VOCABULARY_FILE, read_vocabulary
from model.contract.files.weight_files import find_weight_files
from model.contract.tokenizer import Tokenizer
from model.quantization.offline.checkpoint_writer import LICENCES, CheckpointWriter, check_target
from model.quantization.offline.dense_weights import DenseWeights
from model.quantization.offline.tensor_source import TensorSource
from tools.convert import names
from tools.convert.options import ConvertOptions, add_arguments
from tools.convert.qwen2_config import Qwen2Source, published_raw, qwen2_config, qwen2_generation_config
from tools.convert.rounding import DISK_MARGIN, Tensors, cast, choose_dtype, disk_bytes, dtype_name, watched
from tools.convert.tokenizer_files import (
    TOKENIZER_CONFIG,
    TOKENIZER_FILE,
    read_tokenizer_files,
    tiktoken_file,
    tokenizer_config,
    tokenizer_json,
)
from tools.process import log_written, parse_arguments, run_work

logger = logging.getLogger(__name__)


def convert(options: ConvertOptions) -> None:
    """Converts a checkpoint.

    Raises:
        StartupError: source or target cannot be used; nothing is left behind.
    """
    (_to_qwen2 if options.to == "qwen2" else _to_qwen)(options)


def _to_qwen2(options: ConvertOptions) -> None:
    weights = DenseWeights(options.source)
    config = weights.config
    dtype = choose_dtype(options.dtype, weights.dtype)
    ranks = read_vocabulary(options.source)
    tokenizer = Tokenizer(ranks)
    raw, generation = published_raw(options.source, config)
    chats = generation.get("chat_format") != "raw"
    ids = {"endoftext": tokenizer.endoftext_id, "end": tokenizer.im_end_id if chats else tokenizer.endoftext_id}
    written = qwen2_config(config, raw, generation, dtype=dtype_name(dtype), ids=ids)
    check_target(options.target, disk_bytes(config, dtype))
    with CheckpointWriter(options.target) as writer, torch.inference_mode():
        for tensors in watched(weights.groups(), config.num_layers, "converting"):
            writer.add(cast(qwen2_tensors(tensors), dtype))
        writer.write_json("config.json", written)
        writer.write_json("generation_config.json", qwen2_generation_config(generation, ids))
        writer.write_text(TOKENIZER_FILE, json.dumps(tokenizer_json(ranks), ensure_ascii=False))
        writer.write_json(TOKENIZER_CONFIG, tokenizer_config(config.seq_length, chats=chats))
        writer.copy(options.source, LICENCES)
    if weights.is_expanded:
        logger.info("the quantised weights were expanded to %s", dtype_name(dtype))
    if config.attention_windows:
        logger.warning("this layout has no windows of several sizes (window_attn): what opens it reads all positions")
    lost = [name for name, used in (("NTK", config.use_dynamic_ntk), ("LogN", config.use_logn_attn)) if used]
    if lost:
        logger.info(
            "this layout has no dynamic %s: beyond %d tokens what opens it is not the original",
            " and no ".join(lost),
            config.seq_length,
        )


def qwen2_tensors(published: Tensors) -> Tensors:
    """Names and cuts a group of published tensors as the Qwen2 layout has them.

    Args:
        published: as `DenseWeights.groups` yields them.

    Raises:
        CheckpointError: a bias that the layout has no place for.
    """
    found: Tensors = {}
    outer = names.FIRST | names.LAST
    for name, tensor in published.items():
        if name in outer:
            found[outer[name]] = tensor
            continue
        _, _, layer, half, kind, *rest = name.split(".")
        block = names.qwen2_block(int(layer))
        if half in names.NORMS:
            found[f"{block}{names.NORMS[half]}.{kind}"] = tensor
            continue
        linear = f"{half}.{kind}"
        if rest == ["bias"] and linear != names.BIASED:
            if not bool(tensor.any()):
                continue
            raise CheckpointError(f"tensor {name!r} is not zero, and transformers' Qwen2 has no such bias")
        parts = QWEN2_LINEARS[linear]
        for part, rows in zip(parts, tensor.chunk(len(parts)), strict=True):
            found[f"{block}{part}.{rest[0]}"] = rows
    return found


def _to_qwen(options: ConvertOptions) -> None:
    source = Qwen2Source(options.source)
    ranks = read_tokenizer_files(options.source)
    tokenizer = Tokenizer(ranks)
    weights = TensorSource(options.source)
    (embedding,) = names.FIRST.values()
    first = weights.read([embedding])[embedding]
    dtype = choose_dtype(options.dtype, first.dtype)
    raw = source.published(vocab_size=len(first), dtype=dtype_name(dtype))
    generation = source.published_generation({"endoftext": tokenizer.endoftext_id, "im_end": tokenizer.im_end_id})
    if tokenizer.num_rows_needed > len(first):
        raise CheckpointError(f"{options.source}: the vocabulary has more tokens than the embedding has rows")
    size = sum(path.stat().st_size for path in find_weight_files(options.source))
    check_target(options.target, int(size / first.itemsize * dtype.itemsize * DISK_MARGIN))
    with CheckpointWriter(options.target) as writer, torch.inference_mode():
        for tensors in watched(_groups_of_qwen2(weights, source), source.num_layers, "converting"):
            writer.add(cast(tensors, dtype))
        writer.write_json("config.json", raw)
        writer.write_json("generation_config.json", generation)
        writer.write_text(VOCABULARY_FILE, tiktoken_file(ranks))
        writer.write_json(TOKENIZER_CONFIG, {"tokenizer_class": "QWenTokenizer", "model_max_length": raw["seq_length"]})
        writer.copy(options.source, LICENCES)


def _groups_of_qwen2(weights: TensorSource, source: Qwen2Source) -> Iterator[Tensors]:
    """Yields the tensors under their published names, as `DenseWeights.groups` does."""
    known = set()

    def read(name: str) -> torch.Tensor:
        known.add(name)
        return weights.read([name])[name]

    for published, name in names.FIRST.items():
        yield {published: read(name)}
    for layer in range(source.num_layers):
        ours, theirs = names.published_block(layer), names.qwen2_block(layer)
        tensors = {f"{ours}{norm}.weight": read(f"{theirs}{name}.weight") for norm, name in names.NORMS.items()}
        for linear, parts in QWEN2_LINEARS.items():
            for kind in ("weight", "bias") if linear == names.BIASED else ("weight",):
                tensors[f"{ours}{linear}.{kind}"] = torch.cat([read(f"{theirs}{part}.{kind}") for part in parts])
        yield tensors
    for published, name in names.LAST.items():
        is_embedding = source.is_tied and name not in weights
        yield {published: read(next(iter(names.FIRST.values())) if is_embedding else name)}
    left = [name for name in weights.names if name not in known and not name.endswith(".inv_freq")]
    if left:
        raise CheckpointError(f"unexpected tensor {left[0]!r}: the published layout has no place for it")


def main() -> int:
    """Runs the process and returns its exit status."""
    arguments = parse_arguments("tools.convert.run", __doc__, add_arguments)
    options = ConvertOptions(**{**vars(arguments), "source": Path(arguments.source)})

    def work() -> None:
        convert(options)
        log_written(options.target)

    return run_work(work, out_of_memory="use a machine with more")


if __name__ == "__main__":
    sys.exit(main())
