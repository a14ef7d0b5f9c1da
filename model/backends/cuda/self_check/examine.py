"""Tries and times every kernel, for a person to read; changes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from model.backends.cuda.device_faults import BrokenDeviceError, one_line, require_living_device
from model.backends.cuda.linear_choice import time_us_on_device
from model.backends.cuda.notes import device_notes
from model.backends.cuda.operations import KERNELS
from model.backends.cuda.self_check.check import try_kernel
from model.backends.cuda.self_check.inputs import KernelShape
from model.backends.cuda.self_check.trials import trials_for
from model.backends.cuda.self_check.workloads import Sizes, workload
from model.backends.exam import KernelExam
from model.contract.config import ModelConfig

_NUM_TOKENS, _NUM_SEQS, _CONTEXT = 2048, 16, 2048


def examine_device(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, cache_dtype: torch.dtype, *, all_kernels: bool
) -> tuple[list[KernelExam], str, dict[str, str]]:
    """Examines the kernels on a CUDA device.

    Args:
        config: the checkpoint's numbers.
        device: the device to look at.
        dtype: dtype of the activations.
        cache_dtype: dtype of keys and values.
        all_kernels: also examine those of quantised weights, if the checkpoint has none.

    Returns:
        what there is to say of each, where notes about the device are kept, and which kernels they say have broken it.
    """
    torch.cuda.set_device(device)
    shape = KernelShape.of(config, device, dtype, cache_dtype, block_size=16)
    if all_kernels and shape.bits is None:
        shape = dataclasses.replace(shape, bits=4, group_size=128)
    sizes = Sizes(_NUM_TOKENS, _NUM_SEQS, _CONTEXT, config.intermediate_size // 2, config.vocab_size)
    notes = device_notes(device)
    return examine(shape, sizes, time_us_on_device(device)), str(notes.path), notes.section("faults")


def examine(
    shape: KernelShape, sizes: Sizes, time_us: Callable[[Callable[[], object]], float]
) -> list[KernelExam]:
    """Examines the kernels of a shape.

    Args:
        shape: the checkpoint's traits.
        sizes: how large the timed calls are.
        time_us: returns the microseconds that a call takes.
    """
    exams: list[KernelExam] = []
    broken: str | None = None
    for name, trial in trials_for(shape).items():
        if broken is not None:
            exams.append(KernelExam(name, None, 0.0, f"not tried: {broken}"))
            continue
        try:
            exam = try_kernel(name, KERNELS[name], trial, shape)
            exams.append(exam if exam.failure is not None else _timed(exam, shape, sizes, time_us))
        except BrokenDeviceError as error:
            broken = f"{name} broke the device"
            exams.append(KernelExam(name, None, 0.0, f"it breaks the device: {error}"))
    return exams


def _timed(
    exam: KernelExam, shape: KernelShape, sizes: Sizes, time_us: Callable[[Callable[[], object]], float]
) -> KernelExam:
    try:
        call = workload(exam.name, KERNELS[exam.name], shape, sizes)
        if call is None:
            return exam
        return exam._replace(time_us=time_us(call.run), num_bytes=call.num_bytes, num_flops=call.num_flops)
    except torch.OutOfMemoryError:
        return exam
    except Exception as error:
        require_living_device(shape.device, error)
        return exam._replace(failure=f"in a size of its service: {one_line(error)}")
