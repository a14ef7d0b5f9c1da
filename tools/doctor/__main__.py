"""Looks, measures and prints: `python -m tools.doctor`, started by `qwen-server doctor`.

A failure on the way does not end it: the report says what failed.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from typing import Any

import msgspec
import torch

from model.backends import make_backend
from model.backends.devices import find_device, why_no_kernels
from model.backends.exam import KernelExam, examine_kernels
from model.contract.config import ModelConfig
from model.contract.errors import StartupError
from model.contract.memory_plan import plan_memory
from model.contract.parallel import possible_sizes
from tools.doctor import facts, limits
from tools.doctor.advice import advise
from tools.doctor.text import as_text


def examine(config: ModelConfig, shape: str, device: torch.device, *, is_given: bool) -> dict[str, Any]:
    """Makes the whole report.

    Args:
        config: numbers of the checkpoint whose kernels are tried.
        shape: names the checkpoint.
        is_given: whether the checkpoint was asked for; else all kernels are tried, and memory is not reckoned.
    """
    report: dict[str, Any] = {
        "versions": facts.versions(),
        "machine": facts.machine(),
        "devices": facts.devices(),
        "device": str(device),
        "obstacle": None if device.type == "cpu" else why_no_kernels(device),
        "weights_bytes": plan_memory(config).weights_bytes if is_given else None,
        "tensor_parallel_sizes": possible_sizes(config) if is_given else [],
        "noted_faults": {},
        "notes_path": None,
        "exam_failure": None,
        "kernels": [],
        "limits": {},
        "dtype": "-",
        "shape": shape,
    }
    try:
        dtype = _dtype(device, config)
        report["dtype"] = str(dtype).removeprefix("torch.")
        report["shape"] = f"{shape}, {report['dtype']}"
        report["limits"] = _limits(device, dtype)
        cache_dtype = torch.int8 if config.int8_kv_cache else dtype
        exams, report["notes_path"], report["noted_faults"] = examine_kernels(
            device, config, dtype, cache_dtype, all_kernels=not is_given
        )
        report["kernels"] = [_kernel(exam, report["limits"]) for exam in exams]
    except Exception as error:
        report["exam_failure"] = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
    report["advice"] = [advice._asdict() for advice in advise(report)]
    return report


def _dtype(device: torch.device, config: ModelConfig) -> torch.dtype:
    """Returns the dtype that the checkpoint would run in; silences the backend's log, which the report repeats."""
    logger = logging.getLogger("model.backends")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return make_backend(str(device)).resolve_dtype("auto", config.declared_dtype)
    finally:
        logger.setLevel(level)


def _limits(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    return {
        "copy_bytes_per_s": limits.copy_bytes_per_s(device),
        "read_bytes_per_s": limits.read_bytes_per_s(device),
        "matmul_flops_per_s": limits.matmul_flops_per_s(device, dtype),
    }


def _kernel(exam: KernelExam, limits: dict[str, float]) -> dict[str, Any]:
    best = max(limits["copy_bytes_per_s"], limits["read_bytes_per_s"])
    limit_us = exam.limit_us(best, limits["matmul_flops_per_s"])
    return {
        "name": exam.name,
        "failure": exam.failure,
        "error": exam.error,
        "tolerance": exam.tolerance,
        "time_us": exam.time_us,
        "bytes": exam.num_bytes,
        "flops": exam.num_flops,
        "limit_us": limit_us,
        "share": None if not exam.time_us else limit_us / exam.time_us,
    }


def main() -> int:
    """Runs the process; its status is 1 where something does not work."""
    parser = argparse.ArgumentParser(description="Started by `qwen-server doctor`, not by hand.")
    parser.add_argument("--config", required=True, help="of the checkpoint, as JSON")
    parser.add_argument("--shape", required=True, help="what it is called")
    parser.add_argument("--given", action="store_true", help="that checkpoint was asked for")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        device = find_device(arguments.device)
    except StartupError as error:
        print(f"qwen-server: {error}", file=sys.stderr)
        return 1
    torch.manual_seed(0)
    with torch.inference_mode():
        config = msgspec.json.decode(arguments.config, type=ModelConfig)
        report = examine(config, arguments.shape, device, is_given=arguments.given)
    print(json.dumps(report, indent=1) if arguments.json else as_text(report))
    return int(any(advice["is_problem"] for advice in report["advice"]))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
