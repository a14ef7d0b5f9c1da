"""The options of `qwen-server finetune`, for the command and for the process that trains.

Defaults are those of the published fine-tuning scripts; where they differ between methods, None stands for the
method's own.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.command_line import number, positive

METHODS = ("lora", "qlora", "full")
TARGETS = ("c_attn", "c_proj", "w1", "w2")
SCHEDULERS = ("cosine", "linear", "constant", "constant_with_warmup")
DESCRIPTION = (
    "LoRA, Q-LoRA or all weights, with the published defaults; what it writes serve takes, by --lora or as MODEL. Needs"
    " the extra finetune."
)
DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneOptions:
    """A training.

    Attributes:
        model: folder of the checkpoint, in the published or the Qwen2 layout.
        model_name: adapters name it as their base.
        data: file of conversations.
        out: folder to write.
        method: one of METHODS.
        targets: linears that get factors, by their published names.
        train_embeddings: also train wte and lm_head as a whole; None does so for a base model that is to chat.
        max_length: the most tokens of a sample; None is 2048, or the trained length if that is less.
        long_samples: "truncate" or "drop".
        save_steps: steps between checkpoints.
        gradient_checkpointing: None is yes on a GPU.
        deepspeed: DeepSpeed's own configuration file.
    """

    model: Path
    model_name: str
    data: Path
    out: Path
    method: str = "lora"
    rank: int = 64
    alpha: float = 16.0
    dropout: float = 0.05
    targets: tuple[str, ...] = TARGETS
    train_embeddings: bool | None = None
    epochs: float = 5.0
    max_steps: int | None = None
    batch_size: int | None = None
    gradient_accumulation_steps: int | None = None
    learning_rate: float | None = None
    lr_scheduler: str = "cosine"
    warmup_ratio: float = 0.01
    weight_decay: float = 0.1
    max_length: int | None = None
    long_samples: str = "truncate"
    save_steps: int = 1000
    save_total_limit: int = 10
    seed: int = 42
    dtype: str = "auto"
    device: str = "auto"
    gradient_checkpointing: bool | None = None
    deepspeed: Path | None = None
    threads: int | None = None
    resume: bool = False


# From the published scripts finetune_lora_*.sh and finetune_ds.sh.
METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "lora": {"batch_size": 2, "gradient_accumulation_steps": 8, "learning_rate": 3e-4},
    "qlora": {"batch_size": 2, "gradient_accumulation_steps": 8, "learning_rate": 3e-4},
    "full": {"batch_size": 1, "gradient_accumulation_steps": 16, "learning_rate": 1e-5},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags, which `read_options` turns into options."""
    parser.add_argument("model", metavar="MODEL", help="checkpoint to start from")
    parser.add_argument("data", metavar="DATA", type=Path, help="JSON or JSONL with `conversations` or `messages`")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; missing or empty")
    parser.add_argument("--method", choices=METHODS, default="lora", help="what is trained (default: %(default)s)")
    _add_adapter(parser)
    _add_schedule(parser)
    parser.add_argument("--max-length", type=positive, help="tokens of a sample (default: 2048, or the trained length)")
    parser.add_argument(
        "--long-samples",
        choices=("truncate", "drop"),
        default="truncate",
        help="what becomes of longer ones (default: %(default)s)",
    )
    parser.add_argument("--save-steps", type=positive, default=1000, help="between checkpoints (default: %(default)s)")
    parser.add_argument("--save-total-limit", type=positive, default=10, help="checkpoints kept (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=42, help="of the start and the order (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of the computation (default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: %(default)s)")
    parser.add_argument(
        "--gradient-checkpointing",
        action=argparse.BooleanOptionalAction,
        help="compute activations twice to keep fewer (default: on a GPU)",
    )
    parser.add_argument("--deepspeed", type=Path, metavar="FILE", help="its configuration")
    parser.add_argument("--threads", type=positive, help="CPU threads (default: all cores)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUT")


def _add_adapter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rank", type=positive, default=64, help="of the factors (default: %(default)s)")
    parser.add_argument("--alpha", type=_above_zero, default=16.0, help="their product is times alpha / rank (16)")
    parser.add_argument("--dropout", type=_share, default=0.05, help="in front of the factors (default: %(default)s)")
    parser.add_argument(
        "--targets",
        type=_names,
        default=TARGETS,
        metavar="NAMES",
        help=f"linears that get factors, with commas (default: {','.join(TARGETS)})",
    )
    parser.add_argument(
        "--train-embeddings",
        action=argparse.BooleanOptionalAction,
        help="train wte and lm_head as a whole, too (default: of a base model, which knows no ChatML)",
    )


def _add_schedule(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=_above_zero, default=5.0, help="times all samples are seen (default: 5)")
    parser.add_argument("--max-steps", type=positive, help="steps of the optimizer, whatever --epochs says")
    parser.add_argument("--batch-size", type=positive, help="samples at once on a device (default: 2, full: 1)")
    parser.add_argument(
        "--gradient-accumulation-steps",
        type=positive,
        help="batches in a step of the optimizer (default: 8, full: 16)",
    )
    parser.add_argument("--learning-rate", type=_above_zero, help="at its highest (default: 3e-4, full: 1e-5)")
    parser.add_argument("--lr-scheduler", choices=SCHEDULERS, default="cosine", help="(default: %(default)s)")
    parser.add_argument("--warmup-ratio", type=_share, default=0.01, help="of all steps (default: %(default)s)")
    parser.add_argument("--weight-decay", type=_share, default=0.1, help="of AdamW (default: %(default)s)")


def read_options(arguments: argparse.Namespace, **more: Any) -> FinetuneOptions:
    """Builds the options, with the method's defaults filled in.

    Args:
        arguments: the parsed flags.
        more: values that replace them or are added.
    """
    values = {**vars(arguments), **more}
    for name, default in METHOD_DEFAULTS[values["method"]].items():
        if values.get(name) is None:
            values[name] = default
    return FinetuneOptions(**values)


def _above_zero(text: str) -> float:
    if not 0 < number(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number(text)


def _share(text: str) -> float:
    if not 0 <= number(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to below 1")
    return number(text)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise argparse.ArgumentTypeError("name at least one linear")
    return names
