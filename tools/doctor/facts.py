"""Collects what is installed and what the machine is, as far as it can be told without measuring."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import torch

from model.backends.devices import describe_device, why_no_kernels, why_torch_cannot
from model.backends.huge_pages import use_huge_pages
from model.backends.memory import available_cpu_bytes

_PACKAGES = ("qwen-server", "torch", "triton", "llvmlite", "numpy", "safetensors", "llguidance")
_NVIDIA_VERSION = Path("/proc/driver/nvidia/version")
_CPUINFO = Path("/proc/cpuinfo")
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
# The flags by which the kernels, oneDNN or OpenBLAS choose their code.
_INSTRUCTION_SETS = re.compile(r"avx2|fma|f16c|avx512(f|bw|_bf16|_vnni|_fp16)|amx_\w+|asimd|asimddp|bf16|i8mm|sve2?")
_HUGE_PAGE_TRIAL_BYTES = 32 << 20


def versions() -> dict[str, str | None]:
    """Returns versions by name; None for what is missing."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["torch"] = torch.__version__  # with what it was built for
    found["CUDA of torch"] = torch.version.cuda
    found["ROCm of torch"] = torch.version.hip
    found["NVIDIA driver"] = _nvidia_driver()
    found["C compiler"] = _c_compiler()
    return found


def machine() -> dict[str, Any]:
    """Describes the host: system, processor, memory."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "instruction_sets": _instruction_sets(),
        "num_cores": os.cpu_count(),
        "num_usable_cores": _num_usable_cores(),
        "num_torch_threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "available_memory_bytes": available_cpu_bytes(),
        "huge_pages": _huge_pages(),
        "gives_huge_pages": _gives_huge_pages(),
        "has_python_headers": Path(sysconfig.get_paths()["include"], "Python.h").is_file(),
        "has_nvidia_device": Path("/dev/nvidia0").exists() or _NVIDIA_VERSION.exists(),
    }


def devices() -> list[dict[str, Any]]:
    """Describes the GPUs that torch sees."""
    found: list[dict[str, Any]] = []
    for kind in ("cuda", "xpu"):
        module = getattr(torch, kind)
        count = module.device_count() if module.is_available() else 0
        found += [_device(torch.device(kind, index)) for index in range(count)]
    if torch.backends.mps.is_available():
        found.append(_device(torch.device("mps")))
    return found


def _device(device: torch.device) -> dict[str, Any]:
    facts: dict[str, Any] = {"device": str(device), "name": str(device), "no_kernels": None, "failure": None}
    try:
        facts |= {"name": describe_device(device), "no_kernels": why_no_kernels(device)}
        facts["failure"] = why_torch_cannot(device)
        if device.type in ("cuda", "xpu"):
            module = getattr(torch, device.type)
            facts["free_bytes"], facts["memory_bytes"] = map(int, module.mem_get_info(device))
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            facts["compute_capability"] = f"{properties.major}.{properties.minor}"
            facts["num_multiprocessors"] = properties.multi_processor_count
            facts["L2_bytes"] = getattr(properties, "L2_cache_size", None)
    except RuntimeError as error:  # in use by somebody alone, broken, or a driver that does not tell
        facts["failure"] = " ".join(str(error).split())[:300]
    return facts


def _nvidia_driver() -> str | None:
    found = re.search(r"Module\s+(?:for \S+\s+)?(\d+[\d.]+)", _text(_NVIDIA_VERSION))
    return found[1] if found else None


def _c_compiler() -> str | None:
    """Returns the version of the compiler that Triton would take: CC, gcc or clang."""
    path = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if path is None or shutil.which(path) is None:
        return None
    try:
        text = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return text.partition("\n")[0]


def _processor() -> str:
    found = re.search(r"(?:model name|Model)\s*:\s*(.+)", _text(_CPUINFO))
    return found[1] if found else platform.processor() or platform.machine()


def _instruction_sets() -> list[str]:
    found = re.search(r"(?:flags|Features)\s*:\s*(.+)", _text(_CPUINFO))
    return sorted({word for word in found[1].split() if _INSTRUCTION_SETS.fullmatch(word)}) if found else []


def _num_usable_cores() -> float:
    """Returns the cores that affinity and a container's quota leave."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quota, _, period = _text(_CPU_QUOTA).partition(" ")
    return min(cores, round(int(quota) / int(period), 2)) if quota.isdigit() else cores


def _huge_pages() -> str | None:
    found = re.search(r"\[(\w+)\]", _text(_HUGE_PAGES))
    return found[1] if found else None


def _gives_huge_pages() -> bool | None:
    """Whether memory can be moved into huge pages; None where there are none."""
    if sys.platform != "linux":
        return None
    memory = torch.empty(_HUGE_PAGE_TRIAL_BYTES, dtype=torch.uint8).fill_(1)
    return use_huge_pages(memory.data_ptr(), memory.nbytes)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
