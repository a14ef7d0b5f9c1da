"""Folds a LoRA adapter into a checkpoint: `python -m tools.merge.run MODEL ADAPTER OUT`.

`qwen-server merge` is this module in the place of its own process. It writes a checkpoint in the published layout,
unquantised: with an adapter added, weights are no small integers any more. Sums are made in float32 and rounded once.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import torch

from model.adapters.reader import Adapter, read_adapter
from model.contract.errors import CheckpointError
from model.quantization.offline.checkpoint_writer import CheckpointWriter, check_target
from model.quantization.offline.dense_weights import DenseWeights
from tools.convert.qwen2_config import published_raw, without_quantization
from tools.convert.rounding import Tensors, cast, choose_dtype, disk_bytes, dtype_name, watched
from tools.merge.options import MergeOptions, add_arguments
from tools.process import log_written, parse_arguments, run_work

logger = logging.getLogger(__name__)


def merge(options: MergeOptions) -> None:
    """Merges an adapter into a checkpoint.

    Raises:
        StartupError: checkpoint, adapter or target cannot be used; nothing is left behind.
    """
    weights = DenseWeights(options.source)
    config = weights.config
    adapter = read_adapter(options.adapter, config)
    dtype = choose_dtype(options.dtype, weights.dtype)
    check_target(options.target, disk_bytes(config, dtype))
    raw, _ = published_raw(options.source, config)
    with CheckpointWriter(options.target) as writer, torch.inference_mode():
        for tensors in watched(weights.groups(), config.num_layers, "merging"):
            writer.add(cast(_merged(tensors, adapter, may_have_biases=config.has_bias), dtype))
        writer.copy(options.source)
        writer.write_json("config.json", without_quantization(raw, dtype_name(dtype)))
    if weights.is_expanded:
        logger.info("the quantised weights were expanded to %s; `quantize` packs them again", dtype_name(dtype))


def _merged(tensors: Tensors, adapter: Adapter, *, may_have_biases: bool) -> Tensors:
    """Adds the adapter's updates to a group of tensors."""
    merged = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if kind == "bias" and not module.endswith("c_attn") and not may_have_biases:
            raise CheckpointError(f"tensor {name!r} is not zero; unquantised, this layout has no such bias")
        if kind == "weight":
            tensor = adapter.saved.get(module, tensor)
            updates = adapter.updates.get(module, ())
            if updates:
                tensor = tensor.to(torch.float32, copy=True)
            for update in updates:
                tensor[update.outputs] += update.delta()
        merged[name] = tensor
    return merged


def main() -> int:
    """Runs the process and returns its exit status."""
    arguments = parse_arguments("tools.merge.run", __doc__, add_arguments)
    paths = {"source": Path(arguments.source), "adapter": Path(arguments.adapter)}
    options = MergeOptions(**{**vars(arguments), **paths})

    def work() -> None:
        merge(options)
        log_written(options.target)

    return run_work(work, out_of_memory="use a machine with more")


if __name__ == "__main__":
    sys.exit(main())
