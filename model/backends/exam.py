"""Tries the kernels of a device, for a person to read: which serve, how exact they are, how near to its limits."""

from __future__ import annotations

from typing import NamedTuple

import torch

from model.backends.devices import why_no_kernels
from model.contract.config import ModelConfig


class KernelExam(NamedTuple):
    """What was found of one kernel.

    Attributes:
        name: the kernel's name.
        error: the largest difference from torch's operation, over the largest magnitude; None if it did not run.
        tolerance: the error that rounding explains.
        failure: why it is not used, or None.
        time_us: time of a call whose operands are not in the cache; None where it was not timed.
        num_bytes: bytes that the call must move at least.
        num_flops: operations that it must compute, where arithmetic is the limit; else 0.
    """

    name: str
    error: float | None
    tolerance: float
    failure: str | None = None
    time_us: float | None = None
    num_bytes: int = 0
    num_flops: int = 0

    def limit_us(self, bytes_per_s: float, flops_per_s: float) -> float:
        """The time that the device's limits leave."""
        return 1e6 * max(self.num_bytes / bytes_per_s, self.num_flops / flops_per_s)


def examine_kernels(
    device: torch.device, config: ModelConfig, dtype: torch.dtype, cache_dtype: torch.dtype, *, all_kernels: bool
) -> tuple[list[KernelExam], str | None, dict[str, str]]:
    """Tries and times the kernels that would serve a checkpoint on a device.

    Args:
        device: a device that `find_device` found.
        config: the checkpoint, whose shapes are taken.
        dtype: dtype of activations.
        cache_dtype: dtype of keys and values.
        all_kernels: whether to try also those that the checkpoint does not run.

    Returns:
        What was found of each, nothing where no kernels of ours serve; where notes about the device are kept; and
        the kernels that have broken it, according to them.
    """
    if device.type == "cpu":
        from model.backends.cpu.exam import examine_cpu

        return examine_cpu(config, dtype, cache_dtype, all_kernels=all_kernels), None, {}
    if why_no_kernels(device) is not None:
        return [], None, {}
    from model.backends.cuda.self_check.examine import examine_device

    return examine_device(config, device, dtype, cache_dtype, all_kernels=all_kernels)
