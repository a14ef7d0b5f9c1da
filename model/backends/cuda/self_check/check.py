"""Runs every kernel beside torch's operation, once, before the first step.

A kernel was written for devices its author had; the one it meets may be another. What cannot be compiled or started, or
gives other numbers, costs speed and not the server.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence as AbstractSequence

import torch

from model.backends.cuda.device_faults import BrokenDeviceError, one_line, relative_error, require_living_device
from model.backends.cuda.notes import Notes
from model.backends.cuda.operations import KERNELS, TORCH, Operation, Operations
from model.backends.cuda.self_check.inputs import KernelShape
from model.backends.cuda.self_check.trials import Trial, trials_for
from model.backends.exam import KernelExam
from model.contract.errors import ConfigError, RestartNeededError

logger = logging.getLogger(__name__)

# The largest difference, over the largest magnitude, that rounding explains.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}
# A cached integer may be rounded to its neighbour: one of 127.
_INT8_TOLERANCE = 2e-2
# These make or pick integers, or move numbers.
_EXACT = ("make_decode_inputs", "sample_rows")


def try_kernel(name: str, operation: Operation, trial: Trial, shape: KernelShape) -> KernelExam:
    """Compares a kernel with torch.

    Raises:
        BrokenDeviceError: the device works no more after it.
    """
    tolerance = 0.0 if name in _EXACT else _TOLERANCE[shape.dtype]
    if tolerance and shape.cache_dtype == torch.int8:
        tolerance = max(tolerance, _INT8_TOLERANCE)
    worst = 0.0
    for size in trial.sizes:
        expected = trial.run(TORCH.get(name), shape, size)
        try:
            found = trial.run(operation, shape, size)
            errors = [relative_error(a, b) for a, b in zip(found, expected, strict=True)]
        except Exception as error:  # whatever a compiler, a driver or a wrong shape may raise
            require_living_device(shape.device, error)
            return KernelExam(name, None, tolerance, one_line(error))
        worst = max(worst, *errors)
    failure = None
    if not worst <= tolerance:
        failure = f"it is off by {worst:.3g} of the largest number, {tolerance:g} is allowed"
    return KernelExam(name, worst, tolerance, failure)


def check_kernels(operations: Operations, shape: KernelShape, notes: Notes, *, must_pass: bool) -> None:
    """Tries every kernel that the checkpoint runs, and replaces those that fail.

    Args:
        operations: the operations in use; changed.
        shape: the checkpoint's traits.
        notes: name the kernels that broke the device in an earlier start; those are not tried again.
        must_pass: whether to refuse to start where one fails.

    Raises:
        ConfigError: `must_pass`, and one failed.
        RestartNeededError: a kernel broke the device; the next start will leave it out.
    """
    started = time.monotonic()
    findings = [_find(name, KERNELS[name], trial, shape, notes) for name, trial in trials_for(shape).items()]
    failed = [finding for finding in findings if finding.failure is not None]
    for finding in failed:
        logger.warning("the kernel %s fails on this device: %s", finding.name, finding.failure)
    if failed and must_pass:
        reasons = "; ".join(f"{finding.name}: {finding.failure}" for finding in failed)
        raise ConfigError(f"--kernels triton: not all kernels work on this device ({reasons}); use --kernels auto")
    for finding in failed:
        operations.replace(finding.name, str(finding.failure))
    seconds = time.monotonic() - started
    logger.info("%d kernels checked in %.1f s: %s", len(findings), seconds, _verdict(findings, failed))


def _find(name: str, operation: Operation, trial: Trial, shape: KernelShape, notes: Notes) -> KernelExam:
    noted = notes.read("faults", name)
    if noted is not None:
        return KernelExam(name, None, 0.0, f"{noted} (in an earlier start; noted in {notes.path})")
    try:
        return try_kernel(name, operation, trial, shape)
    except BrokenDeviceError as error:
        raise noted_fault(notes, name, error) from error


def noted_fault(notes: Notes, name: str, error: BrokenDeviceError) -> Exception:
    """Notes what broke the device, for the next start.

    Returns:
        what to raise: a call for a restart, or the error itself where nothing can be noted.
    """
    if notes.keep("faults", name, str(error)) is None:
        return error
    return RestartNeededError(f"{name} broke the device ({error}); starting again without it")


def _verdict(findings: AbstractSequence[KernelExam], failed: AbstractSequence[KernelExam]) -> str:
    if failed:
        names = ", ".join(finding.name for finding in failed)
        return f"torch's operations serve in the place of {names}; `qwen-server doctor` tells more"
    worst = max(findings, key=lambda finding: finding.error or 0.0)
    return f"all agree with torch's operations (the furthest is {worst.name}, off by {worst.error:.2g})"
