"""Says what is wrong in a report and what to do about it. Pure: it knows the report's fields, not the machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

_GIB = 1 << 30
# Below this share of what a device's memory allows, something is odd: another program, a throttled clock.
_LOW_SHARE = 0.3
# More of a device's memory should not be weights: a cache and the steps want some.
_WEIGHTS_SHARE = 0.8
# Calls that move less are over before the memory is at its speed.
MIN_TELLING_BYTES = 32 << 20


class Advice(NamedTuple):
    """One thing to do, in words.

    Attributes:
        is_problem: whether something does not work; otherwise it only could be better.
    """

    is_problem: bool
    text: str


def advise(report: dict[str, Any]) -> list[Advice]:
    """Returns the advice on a report, problems first; none when all is well."""
    parts = (_about_torch, _about_compilers, _about_kernels, _about_memory, _about_the_cpu)
    found = [advice for part in parts for advice in part(report)]
    return sorted(found, key=lambda advice: not advice.is_problem)


def _about_torch(report: dict[str, Any]) -> Iterator[Advice]:
    versions, machine = report["versions"], report["machine"]
    if machine["has_nvidia_device"] and not report["devices"]:
        if versions["CUDA of torch"] is None:
            yield Advice(
                True,
                f"there is an NVIDIA GPU, but torch {versions['torch']} was built without CUDA: install the torch of "
                "PyPI (pip install --force-reinstall torch)",
            )
        else:
            yield Advice(
                True,
                f"there is an NVIDIA GPU, but torch sees none: its driver ({versions['NVIDIA driver'] or 'unknown'}) "
                f"may be too old for CUDA {versions['CUDA of torch']}, or the container was started without --gpus all",
            )
    for device in report["devices"]:
        if device["failure"] is not None:
            yield Advice(True, f"{device['device']} cannot be used: {device['failure']}")
    if report["obstacle"] and report["device"] != "cpu":
        yield Advice(False, f"torch's operations serve here, more slowly than our kernels would: {report['obstacle']}")


def _about_compilers(report: dict[str, Any]) -> Iterator[Advice]:
    versions, machine = report["versions"], report["machine"]
    is_cuda = report["device"].startswith("cuda") and not report["obstacle"]
    if is_cuda and versions["C compiler"] is None:
        yield Advice(True, "Triton needs a C compiler and finds none: install gcc, or set CC")
    if is_cuda and not machine["has_python_headers"]:
        yield Advice(True, "Triton needs Python's headers and finds none: install python3-dev (python3-devel)")
    if report["device"] == "cpu" and versions["llvmlite"] is None:
        yield Advice(False, "llvmlite is not installed, so torch's operators serve, slower: pip install llvmlite")


def _about_kernels(report: dict[str, Any]) -> Iterator[Advice]:
    if report["exam_failure"]:
        yield Advice(True, f"the kernels could not be looked at: {report['exam_failure']}")
    for kernel in report["kernels"]:
        if kernel["failure"] is not None:
            is_problem = report["device"] != "cpu" or kernel["error"] is not None
            yield Advice(
                is_problem,
                f"{kernel['name']}: {kernel['failure']}; torch's operation serves instead"
                + (" (please report it, with the output of `qwen-server doctor --json`)" if is_problem else ""),
            )
        elif kernel["share"] is not None and kernel["share"] < _LOW_SHARE and kernel["bytes"] >= MIN_TELLING_BYTES:
            yield Advice(
                False,
                f"{kernel['name']} takes {1 / kernel['share']:.1f} times what the device allows: is anything else "
                "running on it?",
            )
    for name, reason in report["noted_faults"].items():
        yield Advice(
            False,
            f"{name} broke the device in an earlier start ({reason}) and is left out since; delete "
            f"{report['notes_path']} to have it tried again",
        )


def _about_memory(report: dict[str, Any]) -> Iterator[Advice]:
    device = next((each for each in report["devices"] if each["device"] == report["device"]), None)
    total = report["machine"]["memory_bytes"] if device is None else device.get("memory_bytes")
    free = report["machine"]["available_memory_bytes"] if device is None else device.get("free_bytes")
    weights = report["weights_bytes"]
    if total and weights and weights > total:
        flag = _enough_devices(report, weights)
        split = "" if flag is None else f"share them among {flag.partition(' ')[2]} devices ({flag}), or "
        yield Advice(
            True,
            f"the weights take {weights / _GIB:.1f} GiB and {report['device']} has {total / _GIB:.1f}: {split}take a "
            "smaller checkpoint, or an Int4 one (qwen-server quantize)",
        )
    elif free and weights and weights > free:
        yield Advice(
            True,
            f"the weights take {weights / _GIB:.1f} GiB and {free / _GIB:.1f} of {total / _GIB:.1f} are free on "
            f"{report['device']}: end what holds the rest",
        )
    elif device is not None and free and total and free < 0.8 * total:
        yield Advice(
            False,
            f"only {free / _GIB:.1f} of {total / _GIB:.1f} GiB are free on {report['device']}: other programs hold the "
            "rest",
        )


def _enough_devices(report: dict[str, Any], weights_bytes: int) -> str | None:
    """Returns the flag for the fewest CUDA devices that hold the weights and some cache; None if all are too few."""
    sizes = [device.get("memory_bytes") or 0 for device in report["devices"] if device["device"].startswith("cuda")]
    for number in range(2, len(sizes) + 1):
        if weights_bytes / number < _WEIGHTS_SHARE * min(sizes[:number]):
            kind = "tensor" if number in report["tensor_parallel_sizes"] else "pipeline"
            return f"--{kind}-parallel-size {number}"
    return None


def _about_the_cpu(report: dict[str, Any]) -> Iterator[Advice]:
    machine = report["machine"]
    if report["device"] != "cpu":
        return
    if machine["load_average"] > machine["num_usable_cores"]:
        yield Advice(
            False,
            f"{machine['load_average']:g} programs compete for {machine['num_usable_cores']:g} cores: figures taken "
            "now say little",
        )
    if machine["gives_huge_pages"] is False:
        yield Advice(
            False,
            f"Linux gives no huge pages here (transparent_hugepage: {machine['huge_pages'] or '-'}), which costs up to "
            "a third of the speed: echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
        )
    if machine["num_torch_threads"] > machine["num_usable_cores"]:
        yield Advice(
            False,
            f"torch uses {machine['num_torch_threads']} threads and {machine['num_usable_cores']:g} cores may be used: "
            f"start with --threads {max(1, int(machine['num_usable_cores']))}",
        )
