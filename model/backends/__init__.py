"""Chooses the backend of a device. The engine reaches CUDA through this module only."""

from __future__ import annotations

import logging

import torch

from model.backends.base import Backend
from model.backends.cpu.rows.row_kernels import row_functions
from model.backends.devices import describe_device, find_device, has_bfloat16, why_no_kernels, why_torch_cannot
from model.backends.torch_backend import TorchBackend
from model.backends.torch_device_backend import TorchDeviceBackend
from model.contract.errors import ConfigError

logger = logging.getLogger(__name__)

_NO_INVARIANCE = "torch's products depend on how many rows there are, and the server's own kernels do not run"


def make_backend(device: str, kernels: str = "auto", *, batch_invariant: bool = False) -> Backend:
    """Returns the backend of a device.

    Args:
        device: "auto", "cpu", "mps", "cuda[:N]" or "xpu[:N]". ROCm's devices are "cuda" to torch.
        kernels: "auto" runs kernels of our own and has torch do what one of them cannot; "torch" runs torch's
            operations alone; "triton" refuses to start where a Triton kernel fails.
        batch_invariant: whether a row's result must not depend on what else is in a step.

    Raises:
        ConfigError: the device is unknown or absent, or lacks the kernels that are asked for.
    """
    found = find_device(device)
    if found.type == "cpu":
        if kernels == "triton":
            raise ConfigError("--kernels triton: a CPU has none; use --kernels auto, or --device cuda")
        if batch_invariant and (kernels == "torch" or row_functions(torch.float32) is None):
            raise ConfigError(f"--batch-invariant: {_NO_INVARIANCE} (on a CPU llvmlite compiles them)")
        return TorchBackend(found, own_kernels=kernels != "torch")
    foreign = why_torch_cannot(found)
    if foreign is not None:
        raise ConfigError(f"--device {device}: {foreign}")
    obstacle = why_no_kernels(found)
    if kernels == "triton" and obstacle is not None:
        raise ConfigError(f"--kernels triton: {obstacle}; use --kernels auto")
    if obstacle is None and kernels != "torch":
        from model.backends.cuda.backend import CudaBackend  # which imports Triton

        return CudaBackend(found, must_pass=kernels == "triton", batch_invariant=batch_invariant)
    if batch_invariant:
        raise ConfigError(f"--batch-invariant: {_NO_INVARIANCE}; {obstacle or '--kernels torch was given'}")
    logger.warning("torch's operations serve on %s: %s", describe_device(found), obstacle or "--kernels torch")
    return make_torch_backend(found)


def make_torch_backend(device: torch.device) -> TorchBackend:
    """Returns the backend that needs no Triton, on whatever device; on a CPU its own kernels serve."""
    if device.type == "cpu":
        return TorchBackend(device)
    return TorchDeviceBackend(device, has_bfloat16=has_bfloat16(device))
