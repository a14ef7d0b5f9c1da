"""Which devices there are, which of them torch and our kernels can serve, and what each of several ranks has."""

from __future__ import annotations

import importlib
import re

import torch

from model.contract.errors import ConfigError

# Older devices lack what the kernels are made of.
_OLDEST_CAPABILITY = (8, 0)

_ARCHITECTURE = re.compile(r"(?P<kind>sm|compute)_(?P<major>\d+)(?P<minor>\d)[a-z]?")

_MISSING = {
    "cuda": "this torch sees no CUDA device (driver missing, or a CPU build of torch)",
    "xpu": "this torch sees no XPU device (driver missing, or another build of torch)",
    "mps": "this torch sees no Apple GPU",
}


def find_device(name: str) -> torch.device:
    """Returns the device that `--device` names.

    Raises:
        ConfigError: unknown or absent.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind == "cpu" and (not index or index.isdigit()):
        return torch.device("cpu")
    if kind not in _MISSING or (index and (not index.isdigit() or kind == "mps")):
        raise ConfigError(f"--device {name!r} is not one of auto, cpu, cuda, cuda:N, xpu, xpu:N, mps")
    count = _num_devices(kind)
    if count == 0:
        raise ConfigError(f"--device {kind}: {_MISSING[kind]}")
    if int(index or 0) >= count:
        raise ConfigError(f"--device {name}: there are only {count} {kind.upper()} devices")
    return torch.device(kind) if kind == "mps" else torch.device(kind, int(index or 0))


def device_of_rank(name: str, rank: int, size: int) -> str:
    """Names the device of one of several ranks: a CPU is everybody's, else each has one of its own.

    Raises:
        ConfigError: there are too few, or they are of a kind that ranks cannot exchange tensors on.
    """
    if size == 1:
        return name
    device = find_device(name)
    if device.type == "cpu":
        return "cpu"
    if device.type != "cuda":
        raise ConfigError(f"{size} ranks run on CUDA devices or a CPU, not on {device.type}")
    if ":" in name:
        raise ConfigError(f"--device {name} names one device, which cannot hold {size} ranks; use --device cuda")
    count = _num_devices("cuda")
    if count < size:
        raise ConfigError(
            f"{size} ranks (--tensor-parallel-size, --pipeline-parallel-size) need as many devices; there are only "
            f"{count} CUDA devices"
        )
    return f"cuda:{rank}"


def num_threads_of_rank(device: torch.device, num_threads: int | None, size: int) -> int | None:
    """The threads that were asked for; else each of several ranks on a CPU takes its part of the cores."""
    if num_threads is not None or size == 1 or device.type != "cpu":
        return num_threads
    return max(1, torch.get_num_threads() // size)


def memory_of_rank(device: torch.device, available_bytes: int, size: int) -> int:
    """A rank's part of what is available where it runs: the memory of a CPU is everybody's."""
    return available_bytes // size if device.type == "cpu" else available_bytes


def why_torch_cannot(device: torch.device) -> str | None:
    """Why not even torch computes on a device that it sees, or None: builds leave older and newer ones out."""
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    capability = torch.cuda.get_device_capability(device)
    builds = [found for name in torch.cuda.get_arch_list() if (found := _ARCHITECTURE.fullmatch(name))]
    # Code runs on later devices of its generation, what is compiled on the spot on all later ones.
    for build in builds:
        built = (int(build["major"]), int(build["minor"]))
        if built <= capability and (build["kind"] == "compute" or built[0] == capability[0]):
            return None
    if not builds:
        return None
    architectures = ", ".join(torch.cuda.get_arch_list())
    return (
        f"torch {torch.__version__} was built for {architectures}, and {describe_device(device)} is "
        f"sm_{capability[0]}{capability[1]}: install another build of torch (CUDA 12.6 is the last for V100 and P100)"
    )


def why_no_kernels(device: torch.device) -> str | None:
    """Why our kernels do not serve a device that is no CPU, or None."""
    if device.type != "cuda":
        return f"there are no kernels of ours for {device.type.upper()}, and nobody has tried this server on one yet"
    if torch.version.hip is not None:
        return "our kernels were never run on ROCm, nor was this server"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < _OLDEST_CAPABILITY:
        return f"compute capability {major}.{minor} is below the 8.0 that our kernels need"
    try:
        importlib.import_module("model.backends.cuda.backend")
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "triton":
            raise
        missing = isinstance(error, ModuleNotFoundError) and error.name == "triton"
        return "Triton is not installed (pip install 'qwen-server[cuda]')" if missing else f"Triton fails: {error}"
    return None


def describe_device(device: torch.device) -> str:
    """Name and model of a device, for people."""
    if device.type in ("cuda", "xpu"):
        return f"{device} ({getattr(torch, device.type).get_device_name(device)})"
    return str(device)


def _num_devices(kind: str) -> int:
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    module = torch.xpu if kind == "xpu" else torch.cuda
    return module.device_count() if module.is_available() else 0


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 by itself; some only pretend to, slowly."""
    if device.type == "cuda" and torch.version.hip is None:
        return torch.cuda.get_device_capability(device) >= _OLDEST_CAPABILITY
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "xpu" and bool(torch.xpu.is_bf16_supported())
