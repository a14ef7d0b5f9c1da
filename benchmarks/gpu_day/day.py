"""The parts of a GPU day, and how they are run."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu_day import table
from server.run_module import module_command

ROOT = Path(__file__).resolve().parents[2]
_TAIL_CHARACTERS = 6000


class Part(NamedTuple):
    """One part: a process.

    Attributes:
        name: names its files.
        limit_s: the process is ended after this time; what it has written until then counts.
        command: `{json}` stands for the file of its figures.
    """

    name: str
    limit_s: float
    command: list[str]


def parts(device: str, *, is_small: bool) -> list[Part]:
    """All parts in order.

    Args:
        device: the measured device.
        is_small: tiny shapes and few tests, to try the command itself on any machine.
    """
    decode = ["--device", device, "--json", "{json}"]
    short = ["--prompt-len", "128", "--num-tokens", "48"]
    small = [
        "--shapes", "tiny", "--dtype", "float32", "--batch-sizes", "1", "2", "--prompt-len", "9", "--num-tokens", "6",
        "--prefill-len", "40", "--max-model-len", "128", "--kv-cache-memory-bytes", "2000000",
    ]  # fmt: skip
    plain_tests = ["-q", "-p", "no:cacheprovider", "-p", "no:benchmark"]
    if is_small:
        return [
            Part("roofline-sampled", 60, module_command("benchmarks.roofline", *decode, *small, "--top-p", "0.8")),
            Part("memory", 60, module_command("benchmarks.peak_memory", *decode, "--shapes", "tiny")),
        ]

    def roofline(name: str, limit_s: float, *arguments: str) -> Part:
        return Part(name, limit_s, module_command("benchmarks.roofline", *decode, *arguments))

    num_workers = str(max(2, (os.cpu_count() or 4) * 3 // 4))
    kernels = [*plain_tests, "-n", num_workers, "-m", "not slow", "tests/gpu", "tests/model/backends/cuda"]
    alone = "tests/gpu/test_engine_on_gpu.py::test_the_cache_takes_its_share_of_the_memory"
    reports = ["-s", "-k", "agreement or int8_cache or invariance", "tests/gpu/test_engine_on_gpu.py"]
    sanitizer = "tests/gpu/test_engine_on_gpu.py::test_no_illegal_access"
    return [
        Part("doctor", 120, module_command("server", "doctor", "--device", device, "--json")),
        Part("tests", 240, module_command("pytest", *kernels, "--deselect", alone)),
        Part("tests-alone", 60, module_command("pytest", *plain_tests, alone)),
        Part("agreement", 90, module_command("pytest", *plain_tests, *reports)),
        roofline("roofline", 180, "--shapes", "1.8b", "7b", "7b-int4", "--batch-sizes", "1", "4", "16", "64", *short),
        roofline("roofline-sampled", 90, "--shapes", "1.8b", "7b-int4", "--batch-sizes", "1", "64", "--top-p", "0.8"),
        Part("memory", 180, module_command("benchmarks.peak_memory", *decode)),
        Part("http", 120, module_command("benchmarks.gpu_day.http", *decode)),
        Part("http-1.8b", 150, module_command("benchmarks.gpu_day.http", *decode, "--shape", "1.8b")),
        roofline("roofline-14b", 120, "--shapes", "14b", "14b-int4", "--batch-sizes", "1", "4", "16", "64", *short),
        roofline("roofline-72b", 150, "--shapes", "72b-int4", "--batch-sizes", "1", "4", "16", *short),
        roofline("roofline-256", 150, "--shapes", "1.8b", "7b-int4", "--batch-sizes", "256", *short),
        roofline("peer", 240, "--shapes", "7b", "--batch-sizes", "1", "16", "--peer", *short),
        Part("sanitizer", 300, module_command("pytest", *plain_tests, "-m", "slow", sanitizer)),
    ]


def run_part(part: Part, folder: Path, limit_s: float) -> dict[str, Any]:
    """Runs one part, for at most `limit_s`, and writes its outcome into the folder."""
    figures_file = folder / f"{part.name}.figures.json"
    command = [word.replace("{json}", str(figures_file)) for word in part.command]
    started = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit_s, check=False
        )
        output, status = done.stdout, done.returncode
    except subprocess.TimeoutExpired as e:
        output, status = e.stdout or b"", None
    text = output.decode(errors="replace")
    result = {
        "name": part.name,
        "status": status,
        "seconds": round(time.monotonic() - started, 1),
        "output": text[-_TAIL_CHARACTERS:],
        "figures": json.loads(figures_file.read_text()) if figures_file.exists() else None,
    }
    (folder / f"{part.name}.log").write_text(text)
    (folder / f"{part.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def run_day(all_parts: Sequence[Part], folder: Path, minutes: float, results: Path | None) -> int:
    """Runs the parts that are not done yet, as far as the time goes.

    Returns:
        How many parts failed, ran out of time, or were not begun.
    """
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * minutes
    num_missing = 0
    for part in all_parts:
        file = folder / f"{part.name}.json"
        if not file.exists():
            left_s = deadline - time.monotonic()
            if left_s < min(20.0, part.limit_s):
                print(f"{part.name}: no time left")
                num_missing += 1
                continue
            run_part(part, folder, min(part.limit_s, left_s))
            if results is not None:
                table.write(folder, results)
        result = json.loads(file.read_text())
        word = {0: "done", None: "out of time"}.get(result["status"], f"failed with status {result['status']}")
        print(f"{part.name}: {word}, {result['seconds']} s", flush=True)
        num_missing += result["status"] != 0
    return num_missing
