"""Loads the model that is trained: a checkpoint as transformers' Qwen2, with low-rank factors for LoRA and Q-LoRA."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from model.contract.errors import ConfigError
from model.contract.files.checkpoint_folder import MODEL_TYPE
from model.contract.files.json_file import read_json
from model.contract.tokenizer import Tokenizer
from tools.convert.names import qwen2_targets
from tools.convert.options import ConvertOptions
from tools.convert.run import convert
from tools.convert.tokenizer_files import read_tokenizer_files
from tools.finetune.libraries import require
from tools.finetune.options import FinetuneOptions

# The copy that transformers opens while a training runs.
WORKING_COPY = ".base"


def working_copy(options: FinetuneOptions) -> Path:
    """Returns the checkpoint in the Qwen2 layout: itself, or a copy in the folder that is written.

    Raises:
        StartupError: the checkpoint cannot be read or converted.
    """
    if read_json(options.model / "config.json").get("model_type") != MODEL_TYPE:
        return options.model
    copy = options.out / WORKING_COPY
    if not copy.exists():
        convert(ConvertOptions(source=options.model, target=copy, to="qwen2"))
    return copy


def read_tokenizer(folder: Path) -> Tokenizer:
    """Reads the vocabulary of a checkpoint in either layout.

    Raises:
        CheckpointError: a file is missing or malformed.
    """
    if read_json(folder / "config.json").get("model_type") == MODEL_TYPE:
        return Tokenizer.from_folder(folder)
    return Tokenizer(read_tokenizer_files(folder))


def compute_dtype(options: FinetuneOptions) -> torch.dtype:
    """Returns the dtype of products and, where it is not trained itself, of the base model."""
    if options.dtype != "auto":
        return getattr(torch, options.dtype)  # type: ignore[no-any-return]
    if not uses_gpu(options):
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def uses_gpu(options: FinetuneOptions) -> bool:
    """Whether it trains on a GPU.

    Raises:
        ConfigError: it was asked to, and there is no GPU.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: there is no GPU that torch can use")
    return options.device != "cpu" and torch.cuda.is_available()


def load_model(options: FinetuneOptions, folder: Path, *, checkpoints_gradients: bool) -> Any:
    """Loads the model and prepares it for its method.

    Args:
        folder: a checkpoint in the Qwen2 layout.
        checkpoints_gradients: activations will be computed twice.

    Raises:
        ConfigError: a library is missing, or a target is no linear.
    """
    (transformers,) = require("transformers")
    dtype = compute_dtype(options)
    settings: dict[str, Any] = {"dtype": torch.float32 if options.method == "full" else dtype}
    if options.method == "qlora":
        require("bitsandbytes")
        settings["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        settings["device_map"] = {"": int(os.environ.get("LOCAL_RANK", 0)) if uses_gpu(options) else "cpu"}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **settings)
    model.config.use_cache = False
    if options.method == "full":
        return model
    return _with_adapter(options, folder, model, checkpoints_gradients=checkpoints_gradients)


def _with_adapter(options: FinetuneOptions, folder: Path, model: Any, *, checkpoints_gradients: bool) -> Any:
    (peft,) = require("peft")
    targets = [target for name in options.targets for target in qwen2_targets(name)]
    for name in options.targets:
        if not qwen2_targets(name):
            raise ConfigError(f"--targets: {name!r} is no linear; they are c_attn, c_proj, w1 and w2")
    if options.method == "qlora":
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpoints_gradients)
    elif checkpoints_gradients:
        model.enable_input_require_grads()
    saved = ["embed_tokens", "lm_head"] if _trains_embeddings(options, folder) else None
    config = peft.LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha if options.alpha % 1 else int(options.alpha),
        lora_dropout=options.dropout,
        target_modules=list(dict.fromkeys(targets)),
        modules_to_save=saved,
        bias="none",
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, config)


def _trains_embeddings(options: FinetuneOptions, folder: Path) -> bool:
    """Whether wte and lm_head are trained, too: as published, for base models, which know no ChatML."""
    if options.train_embeddings is not None:
        return options.train_embeddings
    if options.method == "qlora":
        return False
    ends = read_json(folder / "config.json").get("eos_token_id")
    return ends != read_tokenizer(folder).im_end_id
