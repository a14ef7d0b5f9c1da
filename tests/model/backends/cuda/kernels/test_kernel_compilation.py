"""Every kernel compiles for sm_80 and sm_90, without a GPU, and what runs in each decode step spills no register.

What is compiled depends on the checkpoint, not on how many rows a step happens to have.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.backends.cuda.gptq_layout import PackedWeight
from model.backends.cuda.kernels.attention.decode_attention import DecodeRows, choose_num_splits, decode_attention
from model.backends.cuda.kernels.launch import recorded
from model.backends.cuda.kernels.matmul.gptq_matmul import gptq_matmul
from model.backends.cuda.kernels.matmul.row_matmul import MAX_ROWS, row_matmul
from model.backends.cuda.kernels.matmul.tile_matmul import tile_matmul
from model.backends.cuda.kernels.norm import rms_norm
from model.backends.cuda.kernels.sampling.sample_rows import RowFilters, sample_rows
from model.backends.cuda.kernels.silu_mul import silu_mul
from server.run_module import module_command
from tests.support.paths import ROOT

# What a program may have at most: sm_80 has 163 KiB for one, sm_90 227.
MAX_SHARED_BYTES = {80: 163 << 10, 90: 227 << 10}


@pytest.mark.parametrize(
    "is_quick",
    [True, pytest.param(False, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],  # three minutes of a quiet core
    ids=["quick", "all"],
)
def test_kernels_compile(tmp_path: Path, is_quick: bool) -> None:
    """In a process of its own: this one interprets kernels."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = module_command("benchmarks.kernel_report", "--json", str(tmp_path / "report.json"))
    command += ["--quick"] if is_quick else []
    print(subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout)
    uses = json.loads((tmp_path / "report.json").read_text())
    assert {use["arch"] for use in uses} == {80, 90}
    assert len({use["kernel"] for use in uses}) >= 10
    spilling = [use for use in uses if use["is_decode"] and use["stack_bytes"]]
    assert not spilling
    assert not [use for use in uses if use["shared_bytes"] > MAX_SHARED_BYTES[use["arch"]]]


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def gptq(num_rows: int) -> None:
    words, scales = empty(4096, 4096, dtype=torch.int32), empty(256, 4096, dtype=torch.float16)
    gptq_matmul(empty(num_rows, 32768), PackedWeight(words, scales, 4, 128, 32768, 4096), None)


def sample(num_rows: int) -> None:
    column = empty(num_rows, dtype=torch.float32)
    sample_rows(empty(num_rows, 151936, dtype=torch.float32), RowFilters(column, column.int(), column, column, column))


def decode(num_rows: int) -> None:
    numbers = empty(num_rows, dtype=torch.int32)
    query, cache = empty(num_rows, 32, 128), empty(2, 32, 4096, 128)
    num_splits = choose_num_splits(num_rows, 32, 8192)
    rows = DecodeRows(numbers, numbers, numbers, numbers)
    decode_attention(query, cache, None, rows, query, block_size=16, num_splits=num_splits)


CALLS: dict[str, Callable[[int], object]] = {
    "rms_norm": lambda n: rms_norm(empty(n, 4096), empty(4096), 1e-6),
    "silu_mul": lambda n: silu_mul(empty(n, 4096), empty(n, 4096)),
    "row_matmul": lambda n: row_matmul(empty(n, 4096), empty(4096, 4096), None),
    "tile_matmul": lambda n: tile_matmul(empty(n, 4096), empty(4096, 4096), None),
    "gptq_matmul": gptq,
    "sample_rows": sample,
    "decode_attention": decode,
}


@pytest.mark.parametrize("name", CALLS)
def test_numbers_of_rows_share_kernels(name: str) -> None:
    """Triton compiles anew for integers that are 1 or multiples of 16: none that rows decide may be among them."""
    compiled: dict[str, set[object]] = {}
    for num_rows in range(1, MAX_ROWS + 1) if name == "row_matmul" else range(1, 300):
        with recorded() as launches:
            CALLS[name](num_rows)
        for launch in launches:
            kernel = launch.kernel
            options = vars(kernel) | getattr(kernel, "kwargs", {})  # compiled, and interpreted
            left = options.get("do_not_specialize") or ()
            special = tuple(
                (value == 1, value % 16 == 0)
                for parameter, value in zip(kernel.arg_names, launch.arguments, strict=False)
                if isinstance(value, int) and parameter not in left
            )
            chosen = tuple(sorted(launch.constants.items()))
            compiled.setdefault(str((kernel.fn.__name__, chosen, launch.num_warps)), set()).add(special)
    assert compiled
    assert all(len(variants) == 1 for variants in compiled.values()), compiled
