"""Runs one training, from the options to the files: transformers' Trainer, its checkpoints, the result."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from model.contract.errors import ConfigError, StartupError
from model.contract.files.checkpoint_folder import training_steps
from model.contract.files.json_file import read_json
from tools.convert.options import ConvertOptions
from tools.convert.run import convert
from tools.finetune.base_model import compute_dtype, load_model, read_tokenizer, uses_gpu, working_copy
from tools.finetune.batches import Padding, make_examples
from tools.finetune.conversations import read_conversations
from tools.finetune.libraries import require
from tools.finetune.options import FinetuneOptions
from tools.finetune.progress import CURVE, LOSSES, make_watcher

logger = logging.getLogger(__name__)

SETTINGS = "finetune.json"
_ADAM_BETA2 = 0.95  # as in the published scripts
# May differ between the start and a resumption: they change neither the samples nor the steps.
_FREE = ("resume", "threads", "save_steps", "save_total_limit", "out", "gradient_checkpointing", "device", "deepspeed")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "vocab.json", "merges.txt")
_FULL_DISK_BYTES = 32 << 20


def finetune(options: FinetuneOptions) -> None:
    """Trains, and writes an adapter or a checkpoint.

    Raises:
        StartupError: data, checkpoint, libraries or folder cannot be used, or the disk is full.
        KeyboardInterrupt: interrupted; it says how to go on.
    """
    require("transformers", "peft", "accelerate", *(("deepspeed",) if options.deepspeed else ()))
    if options.deepspeed is not None and not options.deepspeed.is_file():
        raise ConfigError(f"{options.deepspeed}: no such file; --deepspeed names its configuration")
    conversations = read_conversations(options.data)
    uses_gpu(options)
    tokenizer = read_tokenizer(options.model)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    state = _make_state(options)
    with state.main_process_first():
        if state.is_main_process:
            _open_folder(options)
    try:
        with state.local_main_process_first():
            base = working_copy(options)
        config = read_json(base / "config.json")
        if tokenizer.num_rows_needed > int(config["vocab_size"]):
            raise ConfigError(f"{options.model}: the vocabulary has more tokens than the embedding has rows")
        trained_length = int(config["max_position_embeddings"])
        examples = make_examples(conversations, tokenizer, options, trained_length)
        _train(options, base, examples, Padding(tokenizer.endoftext_id), state)
    except StartupError:
        raise
    except Exception as error:
        raise _explained(error, options) from error
    finally:
        if state.is_main_process:
            _tidy(options)


def _make_state(options: FinetuneOptions) -> Any:
    (accelerate,) = require("accelerate")
    return accelerate.PartialState(cpu=not uses_gpu(options))


def _open_folder(options: FinetuneOptions) -> None:
    """Makes the folder, or finds in it the training that is to go on.

    Raises:
        ConfigError: it holds something else, or a training with other settings.
    """
    out, path = options.out, options.out / SETTINGS
    digest = hashlib.sha256(options.data.read_bytes()).hexdigest()
    settings = {
        **{key: str(v) if isinstance(v, Path) else v for key, v in asdict(options).items() if key not in _FREE},
        "data_sha256": digest,
    }
    settings = json.loads(json.dumps(settings))
    if options.resume:
        if not path.exists():
            raise ConfigError(f"{out}: there is no training to resume here (no {SETTINGS})")
        before = read_json(path)
        changed = [key for key in settings if key not in ("model", "data") and settings[key] != before.get(key)]
        if changed:
            raise ConfigError(f"{out}: was begun with other settings ({', '.join(changed)}); resume with the same")
        return
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"{out}: exists already; name a new folder, or add --resume to go on with what it holds")
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror})") from error


def _tidy(options: FinetuneOptions) -> None:
    """Leaves no working files behind, and no folder in which nothing was trained."""
    for path in options.out.glob(".*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in options.out.glob("checkpoint-*"):
        if not _is_whole(path):
            shutil.rmtree(path, ignore_errors=True)
    if {path.name for path in options.out.iterdir()} <= {SETTINGS, LOSSES, CURVE}:
        shutil.rmtree(options.out, ignore_errors=True)


def _is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: the Trainer writes its own state last."""
    try:
        read_json(checkpoint / "trainer_state.json")
    except StartupError:
        return False
    return True


def last_checkpoint(out: Path) -> Path | None:
    """Returns the newest whole checkpoint of a folder."""
    return next(filter(_is_whole, training_steps(out)), None)


def _arguments(options: FinetuneOptions, *, checkpoints_gradients: bool) -> Any:
    (transformers,) = require("transformers")
    dtype = compute_dtype(options)
    on_gpu = uses_gpu(options)
    return transformers.TrainingArguments(
        output_dir=str(options.out),
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        learning_rate=options.learning_rate,
        lr_scheduler_type=options.lr_scheduler,
        warmup_steps=options.warmup_ratio,
        weight_decay=options.weight_decay,
        adam_beta2=_ADAM_BETA2,
        save_strategy="steps",
        save_steps=options.save_steps,
        save_total_limit=options.save_total_limit,
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        seed=options.seed,
        data_seed=options.seed,
        use_cpu=not on_gpu,
        bf16=on_gpu and dtype == torch.bfloat16,
        fp16=on_gpu and dtype == torch.float16,
        gradient_checkpointing=checkpoints_gradients,
        gradient_checkpointing_kwargs={"use_reentrant": False} if checkpoints_gradients else None,
        deepspeed=None if options.deepspeed is None else str(options.deepspeed),
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
    )


def _train(options: FinetuneOptions, base: Path, examples: Any, padding: Padding, state: Any) -> None:
    (transformers,) = require("transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    checkpoints_gradients = options.gradient_checkpointing
    if checkpoints_gradients is None:
        checkpoints_gradients = uses_gpu(options)
    arguments = _arguments(options, checkpoints_gradients=checkpoints_gradients)
    transformers.set_seed(options.seed)  # before the factors get their first values
    model = load_model(options, base, checkpoints_gradients=checkpoints_gradients)
    _log_size(model, options)
    watcher = make_watcher(options.out, is_main=state.is_main_process, can_stop=state.num_processes == 1)
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=examples, data_collator=padding, callbacks=[watcher]
    )
    trainer.remove_callback(transformers.PrinterCallback)
    checkpoint = last_checkpoint(options.out) if options.resume else None
    if options.resume:
        logger.info("going on from %s", checkpoint.name if checkpoint else "the beginning: there is no checkpoint yet")
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if watcher.was_interrupted and trainer.state.global_step < trainer.state.max_steps:
        raise KeyboardInterrupt(f"step {trainer.state.global_step} is saved, and --resume goes on from it")
    _write(options, base, trainer, state)


def _log_size(model: Any, options: FinetuneOptions) -> None:
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    logger.info("%s: %s numbers are trained", options.method, f"{trained:,}")


def _write(options: FinetuneOptions, base: Path, trainer: Any, state: Any) -> None:
    """Writes what was trained: an adapter as peft has it, or a checkpoint in the published layout."""
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    folder = options.out / ".written"
    trainer.save_model(str(folder))  # by all processes: each may hold a part
    if not state.is_main_process:
        return
    if options.method == "full":
        for name in _TOKENIZER_FILES:
            if (base / name).exists():
                shutil.copyfile(base / name, folder / name)
        published = options.out / ".published"
        stored = read_json(base / "config.json")
        dtype = stored.get("torch_dtype") or stored.get("dtype") or "auto"
        convert(ConvertOptions(source=folder, target=published, to="qwen", dtype=dtype))
        _move(published, options.out, last="config.json")
        logger.info("wrote %s: qwen-server serve %s", options.out, options.out)
        return
    config = read_json(folder / "adapter_config.json")
    config["base_model_name_or_path"] = options.model_name
    config["target_modules"] = sorted(config["target_modules"])  # a set, in another order each time
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    for name in ("training_args.bin", "README.md"):
        (folder / name).unlink(missing_ok=True)
    _move(folder, options.out, last="adapter_config.json")
    logger.info("wrote %s: qwen-server serve %s --lora NAME=%s", options.out, options.model_name, options.out)


def _move(source: Path, target: Path, *, last: str) -> None:
    """Moves files one by one, `last` at the end: a folder is recognised by it."""
    mode = (target / SETTINGS).stat().st_mode
    for path in sorted(source.iterdir(), key=lambda path: path.name == last):
        path.chmod(mode)  # safetensors makes files that only their owner can read
        os.replace(path, target / path.name)


def _explained(error: Exception, options: FinetuneOptions) -> Exception:
    """Replaces an error that has a remedy by a sentence about it; returns any other as it is."""
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    is_full = is_full or "No space left" in str(error)
    if not is_full and isinstance(error, RuntimeError) and "write" in str(error):
        is_full = shutil.disk_usage(options.out).free < _FULL_DISK_BYTES
    if is_full:
        newest = last_checkpoint(options.out)
        how = f"--resume goes on from {newest.name}" if newest else "nothing was saved yet"
        return ConfigError(f"{options.out}: the disk is full; make room and run it again: {how}")
    return error
