"""Chooses the backend of a device. The only door to CUDA for the rest of the engine."""

from __future__ import annotations

import torch

from model.backends.base import Backend
from model.backends.torch_backend import TorchBackend
from model.errors import ConfigError

# Older devices lack what the kernels are made of.
_OLDEST_CAPABILITY = (8, 0)


def make_backend(device: str, kernels: str = "auto") -> Backend:
    """Returns the backend of a device.

    Args:
        device: "auto", "cpu" or "cuda[:N]".
        kernels: "auto" runs kernels of our own and has torch do what one of them cannot; "torch" runs torch's
            operations alone; "triton" refuses to start where a Triton kernel fails.

    Raises:
        ConfigError: unknown or absent device, or one without Triton kernels where those are asked for.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ConfigError(f"--device {device!r} is not one of auto, cpu, cuda, cuda:N")
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("--device cuda: this torch sees no CUDA device (driver missing, or a CPU build of torch)")
        if int(index or 0) >= torch.cuda.device_count():
            raise ConfigError(f"--device {device}: there are only {torch.cuda.device_count()} CUDA devices")
        found = torch.device("cuda", int(index or 0))
        return TorchBackend(found) if kernels == "torch" else _make_cuda_backend(found, must_pass=kernels == "triton")
    if kernels == "triton":
        raise ConfigError("--kernels triton: a CPU has none; use --kernels auto, or --device cuda")
    return TorchBackend(torch.device("cpu"))


def _make_cuda_backend(device: torch.device, *, must_pass: bool) -> Backend:
    try:
        from model.backends.cuda.backend import CudaBackend
    except ImportError as e:
        if e.name is None or e.name.split(".")[0] != "triton":
            raise
        raise ConfigError("--device cuda needs Triton; install it with `pip install 'qwen-server[cuda]'`") from e
    capability = torch.cuda.get_device_capability(device)
    if capability < _OLDEST_CAPABILITY:
        raise ConfigError(
            f"--device {device}: compute capability {'.'.join(map(str, capability))} is below 8.0, the oldest that is "
            "supported"
        )
    return CudaBackend(device, must_pass=must_pass)
