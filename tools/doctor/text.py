"""Writes a report as text that people read and paste."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tools.doctor.advice import MIN_TELLING_BYTES

_GIB = 1 << 30


def as_text(report: dict[str, Any]) -> str:
    """Writes the report in sections of lines."""
    sections = [
        ("versions", [(name, version or "-") for name, version in report["versions"].items()]),
        ("machine", _machine(report["machine"])),
        *((f"device {device['device']}", _device(device)) for device in report["devices"]),
        (f"limits of {report['device']}", _limits(report)),
    ]
    width = max(len(name) for _, lines in sections for name, _ in lines)
    parts = ["\n".join([title, *(f"  {n:<{width}}  {value}" for n, value in lines)]) for title, lines in sections]
    parts.append("\n".join([f"kernels on {report['device']}, {report['shape']}", *_kernels(report)]))
    advice = [f"  {'!' if each['is_problem'] else '-'} {each['text']}" for each in report["advice"]]
    parts.append("\n".join(["what to do", *(advice or ["  nothing: all is well"])]))
    return "\n\n".join(parts)


def _machine(machine: dict[str, Any]) -> list[tuple[str, str]]:
    usable = machine["num_usable_cores"]
    huge = {True: "given", False: "not given", None: "-"}[machine["gives_huge_pages"]]
    return [
        ("system", machine["system"]),
        ("processor", machine["processor"]),
        ("instruction sets", " ".join(machine["instruction_sets"]) or "-"),
        ("cores", f"{machine['num_cores']}, {usable:g} usable, {machine['num_torch_threads']} threads of torch"),
        ("load", f"{machine['load_average']:g}"),
        ("memory", _of(machine["available_memory_bytes"], machine["memory_bytes"])),
        ("huge pages", f"{huge} (transparent_hugepage: {machine['huge_pages'] or '-'})"),
    ]


def _device(device: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [("name", device["name"])]
    if "compute_capability" in device:
        multiprocessors = f"{device['num_multiprocessors']} multiprocessors"
        lines.append(("capability", f"{device['compute_capability']}, {multiprocessors}"))
    if "memory_bytes" in device:
        lines.append(("memory", _of(device["free_bytes"], device["memory_bytes"])))
    if device["failure"] is not None:
        lines.append(("failure", device["failure"]))
    lines.append(("served by", "our kernels" if device["no_kernels"] is None else f"torch: {device['no_kernels']}"))
    return lines


def _of(free: int, total: int) -> str:
    return f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB free"


def _limits(report: dict[str, Any]) -> list[tuple[str, str]]:
    limits = report["limits"]
    names = {"copy_bytes_per_s": "copy", "read_bytes_per_s": "read"}
    lines = [(name, f"{limits[key] / 1e9:.1f} GB/s") for key, name in names.items() if limits.get(key)]
    if limits.get("matmul_flops_per_s"):
        lines.append((f"matmul {report['dtype']}", f"{limits['matmul_flops_per_s'] / 1e12:.2f} TFLOP/s"))
    return lines or [("-", "not measured")]


def _kernels(report: dict[str, Any]) -> list[str]:
    if not report["kernels"]:
        return [f"  none of ours: {report['obstacle'] or report['exam_failure'] or 'none are needed'}"]
    rows = [("", "works", "off by", "allowed", "time", "limit", "of limit"), *map(_row, report["kernels"])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [("  " + "  ".join(_aligned(row, widths))).rstrip() for row in rows]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    cells = zip(row, widths, range(len(row)), strict=True)
    return [f"{cell:<{width}}" if column < 2 else f"{cell:>{width}}" for cell, width, column in cells]


def _row(kernel: dict[str, Any]) -> tuple[str, ...]:
    is_telling = kernel["share"] is not None and kernel["bytes"] >= MIN_TELLING_BYTES
    return (
        kernel["name"],
        "yes" if kernel["failure"] is None else "no",
        "-" if kernel["error"] is None else f"{kernel['error']:.1e}",
        "-" if kernel["error"] is None else f"{kernel['tolerance']:.0e}",
        "-" if kernel["time_us"] is None else _time(kernel["time_us"]),
        _time(kernel["limit_us"]) if is_telling else "-",
        f"{kernel['share']:.0%}" if is_telling else "-",
    )


def _time(microseconds: float) -> str:
    return f"{microseconds:.1f} us" if microseconds < 1000 else f"{microseconds / 1000:.2f} ms"
