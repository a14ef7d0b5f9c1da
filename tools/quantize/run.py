"""Makes a GPTQ checkpoint in the published layout from an unquantised one: `python -m tools.quantize.run SRC DST`.

`qwen-server quantize` is this module in the place of its own process. Layer by layer: what is in memory is one
block in float32, the calibration samples' activations, and up to a shard of results. Each block is calibrated with the
outputs of the blocks before it as they are after quantisation.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from model.backends.devices import find_device
from model.contract.config import ModelConfig, QuantizationConfig
from model.contract.errors import CheckpointError
from model.contract.files.json_file import read_json
from model.contract.files.linears import linear_shapes
from model.contract.files.model_config import read_model_config
from model.contract.files.weight_files import EMBEDDING
from model.contract.memory_plan import plan_memory
from model.contract.tokenizer import Tokenizer
from model.quantization.offline.block_stages import STAGES, CalibrationRun, Weights
from model.quantization.offline.calibration import calibration_samples
from model.quantization.offline.checkpoint_writer import CheckpointWriter, check_target
from model.quantization.offline.gptq_layout import check_shape, pack_linear
from model.quantization.offline.gptq_solver import Hessian, output_error, quantize_linear
from model.quantization.offline.tensor_source import TensorSource, all_finite
from tools.process import log_written, parse_arguments, run_work
from tools.quantize.options import QuantizeOptions, add_arguments

logger = logging.getLogger(__name__)

_LINEARS = tuple(name for stage in STAGES for name in stage)
_DISK_MARGIN = 1.05

OnLinear = Callable[[str, float], None]


def quantize(options: QuantizeOptions, on_linear: OnLinear | None = None) -> dict[str, float]:
    """Quantises a checkpoint.

    Args:
        on_linear: called with the name and the relative output error of each linear that is done.

    Returns:
        The relative squared error of each linear's outputs on the calibration text.

    Raises:
        StartupError: source, target, text or device cannot be used; nothing is left behind.
    """
    config = _check_source(options)
    device = find_device(options.device)
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    _check_target(options, config)
    tokenizer = Tokenizer.from_folder(options.source)
    samples = calibration_samples(
        tokenizer,
        options.calibration,
        num_samples=options.num_samples,
        # Beyond the trained length NTK would change the activations, to no use.
        sample_length=min(options.sample_length, config.seq_length),
        seed=options.seed,
    )
    if int(samples.max()) >= config.vocab_size:
        raise CheckpointError(f"{options.source}: the vocabulary has more tokens than the embedding has rows")
    logger.info("calibrating with %d pieces of %d tokens on %s", *samples.shape, device)
    source = TensorSource(options.source)
    errors: dict[str, float] = {}

    def record(name: str, error: float) -> None:
        errors[name] = error
        if on_linear is not None:
            on_linear(name, error)

    with CheckpointWriter(options.target) as writer, torch.inference_mode():
        run = CalibrationRun(config, samples, source.read([EMBEDDING])[EMBEDDING], device)
        writer.add(_as_float16(source.read([EMBEDDING])))
        for layer in range(config.num_layers):
            writer.add(_quantize_block(options, config, run, source, layer, record))
        writer.add(_as_float16(source.read(["transformer.ln_f.weight", "lm_head.weight"])))
        _write_configs(options, writer)
    return errors


def _quantize_block(
    options: QuantizeOptions,
    config: ModelConfig,
    run: CalibrationRun,
    source: TensorSource,
    layer: int,
    on_linear: OnLinear,
) -> dict[str, torch.Tensor]:
    """Quantises one block; returns its tensors as the layout stores them."""
    prefix = f"transformer.h.{layer}."
    names = ["ln_1.weight", "ln_2.weight", *(f"{name}.weight" for name in _LINEARS)]
    names += [f"{name}.bias" for name in _LINEARS if f"{prefix}{name}.bias" in source]
    stored = source.read([prefix + name for name in names])
    _check_block(stored, prefix, config)
    device = run.hidden.device
    weights: Weights = {name: stored.pop(prefix + name).to(device, torch.float32) for name in names}
    result = _as_float16({prefix + name: weights[name] for name in ("ln_1.weight", "ln_2.weight")})

    def quantize_one(name: str, hessian: Hessian) -> None:
        weight = weights[f"{name}.weight"]
        linear = quantize_linear(
            weight,
            hessian.matrix,
            bits=options.bits,
            group_size=options.group_size,
            act_order=options.act_order,
            damp=options.damp,
        )
        rounded = linear.dequantized()
        on_linear(prefix + name, output_error(weight, rounded, hessian.matrix))
        packed = pack_linear(linear, weights.get(f"{name}.bias"))
        result.update({f"{prefix}{name}.{key}": tensor for key, tensor in packed.items()})
        weights[f"{name}.weight"] = rounded

    run.run_block(weights, quantize_one)
    return result


def _check_block(stored: dict[str, torch.Tensor], prefix: str, config: ModelConfig) -> None:
    for name, (num_inputs, num_outputs) in linear_shapes(config).items():
        found, shape = tuple(stored[f"{prefix}{name}.weight"].shape), (num_outputs, num_inputs)
        if found != shape:
            raise CheckpointError(f"{prefix}{name}.weight has shape {found}, but config.json asks for {shape}")


def _as_float16(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rounds to float16, in which the published layout keeps everything that is not quantised."""
    converted = {name: tensor.to(device="cpu", dtype=torch.float16) for name, tensor in tensors.items()}
    for name, tensor in converted.items():
        if not all_finite(tensor):
            raise CheckpointError(f"tensor {name!r} has values beyond float16, which this layout stores")
    return converted


def _check_source(options: QuantizeOptions) -> ModelConfig:
    config = read_model_config(options.source)
    if config.quantization is not None:
        raise CheckpointError(
            f"{options.source}: is quantised already ({config.quantization.bits} bits); start from the original"
        )
    hidden, inner = config.hidden_size, config.intermediate_size // 2
    check_shape("attn", hidden, hidden, options.bits)
    check_shape("mlp", inner, inner, options.bits)
    return config


def _check_target(options: QuantizeOptions, config: ModelConfig) -> None:
    kind = QuantizationConfig(
        quant_method="gptq", bits=options.bits, group_size=options.group_size, desc_act=options.act_order
    )
    weights = plan_memory(replace(config, quantization=kind), dtype="float16").weights_bytes
    check_target(options.target, int(weights * _DISK_MARGIN))


def _write_configs(options: QuantizeOptions, writer: CheckpointWriter) -> None:
    settings = {
        "bits": options.bits,
        "group_size": options.group_size,
        "damp_percent": options.damp,
        "desc_act": options.act_order,
        "static_groups": False,
        "sym": True,
        "true_sequential": True,
        "model_name_or_path": None,
        "model_file_base_name": "model",
    }
    raw = read_json(options.source / "config.json")
    raw |= {"bf16": False, "fp16": True, "fp32": False, "torch_dtype": "float16"}
    raw["quantization_config"] = {**settings, "quant_method": "gptq"}
    writer.copy(options.source)
    writer.write_json("config.json", raw)
    writer.write_json("quantize_config.json", settings)


def _run(options: QuantizeOptions) -> None:
    """Quantises with a progress bar and a closing line."""
    with contextlib.ExitStack() as stack:
        bars: list[tqdm[None]] = []

        def show(name: str, error: float) -> None:
            if not bars:  # not before it is clear that the work can be done
                total = read_model_config(options.source).num_layers * len(_LINEARS)
                bars.append(stack.enter_context(tqdm(total=total, unit="linear", desc="quantising")))
            bars[0].set_postfix_str(f"{name.removeprefix('transformer.')} error {error:.2e}", refresh=False)
            bars[0].update()

        errors = quantize(options, show)
    worst = max(errors, key=errors.__getitem__)
    mean = sum(errors.values()) / len(errors)
    logger.info("relative output error %.2e on average, at most %.2e (%s)", mean, errors[worst], worst)
    log_written(options.target)


def main() -> int:
    """Runs the process and returns its exit status."""
    arguments = parse_arguments("tools.quantize.run", __doc__, add_arguments)
    options = QuantizeOptions(**{**vars(arguments), "source": Path(arguments.source)})
    return run_work(lambda: _run(options), out_of_memory="try --num-samples 16")


if __name__ == "__main__":
    sys.exit(main())
