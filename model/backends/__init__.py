"""Chooses the backend of a device. The only door to CUDA for the rest of the engine."""

from __future__ import annotations

import torch

from model.backends.base import Backend
from model.backends.torch_backend import TorchBackend
from model.errors import ConfigError


def make_backend(device: str) -> Backend:
    """Returns the backend for "auto", "cpu" or "cuda[:N]".

    Raises:
        ConfigError: unknown or absent device.
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
        return _make_cuda_backend(torch.device("cuda", int(index or 0)))
    return TorchBackend(torch.device("cpu"))


def _make_cuda_backend(device: torch.device) -> Backend:
    try:
        from model.backends.cuda.backend import CudaBackend
    except ImportError as e:
        if e.name is None or e.name.split(".")[0] != "triton":
            raise
        raise ConfigError("--device cuda needs Triton; install it with `pip install 'qwen-server[cuda]'`") from e
    return CudaBackend(device)
