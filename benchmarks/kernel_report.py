"""Reports registers, spills and shared memory of the compiled CUDA kernels, in every configuration. Needs no GPU.

`python -m benchmarks.kernel_report` calls the public functions with tensors that have no storage, in the shapes of the
published checkpoints, and compiles the kernels they would start, for sm_80 and sm_90.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # read when Triton is imported

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from model.backends.cuda.gptq_layout import PackedWeight
from model.backends.cuda.kernels import decode_inputs, norm
from model.backends.cuda.kernels.attention import decode_attention, prefill_attention
from model.backends.cuda.kernels.attention.rotary import rotate_and_cache
from model.backends.cuda.kernels.launch import Launch, recorded
from model.backends.cuda.kernels.matmul import gptq_matmul
from model.backends.cuda.kernels.matmul.low_rank import add_low_rank
from model.backends.cuda.kernels.matmul.row_matmul import row_matmul
from model.backends.cuda.kernels.matmul.tile_matmul import tile_matmul
from model.backends.cuda.kernels.sampling.sample_rows import RowFilters, sample_rows
from model.backends.cuda.kernels.silu_mul import silu_mul

_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
}
_BLOCK_SIZE = 16
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True, slots=True)
class KernelUse:
    """The resources of one kernel in one configuration.

    Attributes:
        case: the call that starts the kernel.
        arch: 80 or 90.
        registers: registers per thread.
        stack_bytes: local memory per thread; above 0 means spills.
        shared_bytes: shared memory per program.
        num_warps: warps per program.
        is_decode: the kernel runs in every decode step.
    """

    case: str
    kernel: str
    arch: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    num_warps: int
    is_decode: bool


def _meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _attention(
    num_rows: int,
    head_dim: int,
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    *,
    is_decode: bool,
    window: int = 0,
) -> None:
    num_heads, num_slots = 32, 1 << 16
    cache = _meta(2, num_heads, num_slots, head_dim, dtype=cache_dtype)
    scales = _meta(2, num_heads, num_slots, dtype=torch.float32) if cache_dtype == torch.int8 else None
    angles = _meta(num_rows, head_dim // 2, dtype=torch.float32)
    row = _meta(num_rows, dtype=torch.float32)
    slots = _meta(num_rows, dtype=torch.int64)
    qkv = _meta(num_rows, 3 * num_heads * head_dim, dtype=dtype)
    query = rotate_and_cache(qkv, angles, angles, row, slots, cache, scales)
    table = _meta(1 << 12, dtype=torch.int32)
    out = torch.empty_like(query)
    if is_decode:
        rows = _meta(num_rows, dtype=torch.int32)
        decodes = decode_attention.DecodeRows(rows, rows, rows, table)
        num_splits = decode_attention.choose_num_splits(num_rows, num_heads, 8192)
        decode_attention.decode_attention(
            query, cache, scales, decodes, out, block_size=_BLOCK_SIZE, num_splits=num_splits, window=window
        )
    else:
        block_rows = prefill_attention.choose_block_rows(dtype, num_rows)
        tiles = prefill_attention.PrefillTiles(_meta(16, 4, dtype=torch.int32), table, block_rows)
        prefill_attention.prefill_attention(query, cache, scales, tiles, out, block_size=_BLOCK_SIZE, window=window)


def _gptq(
    num_rows: int, dtype: torch.dtype, bits: int, group_size: int, *, is_plain: bool, kind: str = "gptq"
) -> None:
    in_features, out_features = 4096, 11008
    per_word = 32 // bits
    size = in_features if group_size == -1 else group_size
    scales = _meta(in_features // size, out_features, dtype=torch.float16 if kind == "gptq" else torch.float32)
    zeros_dtype = torch.uint8 if bits == 4 else torch.int16
    weight = PackedWeight(
        words=_meta(out_features, in_features // per_word, dtype=torch.int32),
        scales=scales,
        zeros=None if is_plain else _meta(*scales.shape, dtype=zeros_dtype),
        permutation=None if is_plain else _meta(in_features, dtype=torch.int32),
        bits=bits,
        group_size=size,
        in_features=in_features,
        out_features=out_features,
        rows_per_tile=8 if size % 32 else 16,
        offsets=_meta(*scales.shape, dtype=torch.float32) if kind == "offsets" else None,
        codes=_meta(16, dtype=torch.float32) if kind == "codes" else None,
    )
    gptq_matmul.gptq_matmul(_meta(num_rows, in_features, dtype=dtype), weight, None)


def _rows(dtype: torch.dtype) -> None:
    x = _meta(1, 8192, dtype=dtype)
    weight = _meta(8192, dtype=dtype)
    norm.rms_norm(x, weight, 1e-6)
    norm.rms_norm(x, weight, 1e-6, x)
    silu_mul(x, x)
    for num_rows in (1, 2, 4):
        row_matmul(_meta(num_rows, 8192, dtype=dtype), _meta(22016, 8192, dtype=dtype), weight[:22016])
    slots = _meta(16, dtype=torch.int32)
    a, b = _meta(8, 192, 4096, dtype=dtype), _meta(8, 12288, 64, dtype=dtype)
    add_low_rank(_meta(16, 12288, dtype=dtype), _meta(16, 4096, dtype=dtype), slots, a, b)
    tile_matmul(x, _meta(22016, 8192, dtype=dtype), None)


def _step() -> None:
    tables = decode_inputs.AngleTables(
        _meta(3, 8192, 64, dtype=torch.float32),
        _meta(3, 8192, 64, dtype=torch.float32),
        _meta(8192, dtype=torch.float32),
    )
    fields, table = _meta(64, 4, dtype=torch.int32), _meta(4096, dtype=torch.int32)
    decode_inputs.make_decode_inputs(fields, table, _meta(64, dtype=torch.int64), tables, _BLOCK_SIZE)
    columns = [_meta(64, dtype=dtype) for dtype in (torch.float32, torch.int32, *[torch.float32] * 3)]
    sample_rows(_meta(64, 151936, dtype=torch.float32), RowFilters(*columns))


def cases(*, is_quick: bool) -> Iterator[tuple[str, bool, partial[None]]]:
    """Names, whether they are part of a decode step, and calls."""
    half, full, int8 = torch.bfloat16, torch.float32, torch.int8
    yield "step", True, partial(_step)
    yield "rows bf16", True, partial(_rows, half)
    for cache_dtype in (half, int8):
        name = f"bf16, head 128, {_TYPES[cache_dtype]} cache"
        yield f"decode 1 {name}", True, partial(_attention, 1, 128, half, cache_dtype, is_decode=True)
        yield f"prefill {name}", False, partial(_attention, 2048, 128, half, cache_dtype, is_decode=False)
    call = partial(_attention, 1, 128, half, half, is_decode=True, window=2048)
    yield "decode 1 bf16, head 128, bf16 cache, a window", True, call
    call = partial(_attention, 2048, 128, half, half, is_decode=False, window=2048)
    yield "prefill bf16, head 128, bf16 cache, a window", False, call
    yield "gptq int4 g128, 1 row", True, partial(_gptq, 1, half, 4, 128, is_plain=True)
    yield "gptq int4 g128, 16 rows", True, partial(_gptq, 16, half, 4, 128, is_plain=True)
    yield "int4 g32 with offsets, 1 row", True, partial(_gptq, 1, half, 4, 32, is_plain=True, kind="offsets")
    yield "nf4, 16 rows", True, partial(_gptq, 16, half, 4, 64, is_plain=True, kind="codes")
    if is_quick:
        return
    for kind, bits, group_size in (("codes", 4, 64), ("offsets", 4, 32), ("offsets", 8, 32), ("scales", 8, 16)):
        for num_rows in (1, 16, 32, 64, 300):
            call = partial(_gptq, num_rows, half, bits, group_size, is_plain=True, kind=kind)
            yield f"int{bits} g{group_size} {kind}, {num_rows} rows", num_rows < 300, call
    for dtype in (full, torch.float16):
        yield f"rows {_TYPES[dtype]}", True, partial(_rows, dtype)
    for head_dim in (64, 128):
        for dtype, cache_dtype in ((full, full), (full, int8), (torch.float16, torch.float16), (half, half)):
            name = f"{_TYPES[dtype]}, head {head_dim}, {_TYPES[cache_dtype]} cache"
            for num_rows in (1, 64, 256):
                call = partial(_attention, num_rows, head_dim, dtype, cache_dtype, is_decode=True)
                yield f"decode {num_rows} {name}", True, call
            call = partial(_attention, 1, head_dim, dtype, cache_dtype, is_decode=True, window=2048)
            yield f"decode 1 {name}, a window", True, call
            call = partial(_attention, 2048, head_dim, dtype, cache_dtype, is_decode=False, window=2048)
            yield f"prefill 2048 {name}, a window", False, call
            for num_rows in (20, 2048):
                call = partial(_attention, num_rows, head_dim, dtype, cache_dtype, is_decode=False)
                yield f"prefill {num_rows} {name}", False, call
    for bits in (4, 8):
        for group_size in (32, 64, 128, -1):
            for is_plain in (True, False):
                for num_rows in (1, 16, 32, 64, 300):
                    name = f"gptq int{bits} g{group_size}{'' if is_plain else ' asym act-order'}, {num_rows} rows"
                    call = partial(_gptq, num_rows, half, bits, group_size, is_plain=is_plain)
                    yield name, num_rows < 300, call


def _compile(launch: Launch, arch: int) -> Any:
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, (parameter, value) in enumerate(zip(launch.kernel.params, launch.arguments, strict=False)):
        name = parameter.name
        is_special = isinstance(value, int) and not parameter.do_not_specialize
        if value is None or (is_special and value == 1):
            signature[name], constants[name] = "constexpr", value  # as a launch would specialise it
        elif isinstance(value, torch.Tensor):
            signature[name] = "*" + _TYPES[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, int):
            signature[name] = "i32" if value < 1 << 31 else "i64"
            if is_special and value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32"
    is_dependent = arch >= 90
    for name, value in [*launch.constants.items(), ("IS_DEPENDENT", is_dependent)]:
        signature[name], constants[name] = "constexpr", value
    source = ASTSource(launch.kernel, signature, constants, attributes)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages, "launch_pdl": is_dependent}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def _resources(cubin: bytes) -> tuple[int, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_CUOBJDUMP), "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump said nothing of registers: {text}")
    return int(found[1]), int(found[2])


def report(archs: list[int], *, is_quick: bool) -> list[KernelUse]:
    """Compiles all cases; a kernel and configuration that two of them share is listed once."""
    uses: list[KernelUse] = []
    seen: set[tuple[int, str]] = set()
    for case, is_decode, call in cases(is_quick=is_quick):
        with recorded() as launches:
            call()
        for launch in launches:
            for arch in archs:
                kernel = _compile(launch, arch)
                if (arch, kernel.hash) in seen:
                    continue
                seen.add((arch, kernel.hash))
                registers, stack_bytes = _resources(kernel.asm["cubin"])
                taken = (registers, stack_bytes, kernel.metadata.shared, launch.num_warps)
                uses.append(KernelUse(case, launch.kernel.fn.__name__, arch, *taken, is_decode))
    return uses


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Registers, spills and shared memory of the CUDA kernels.")
    parser.add_argument("--quick", action="store_true", help="one case of each kernel")
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90])
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    uses = report(arguments.arch, is_quick=arguments.quick)
    print("| case | kernel | sm | warps | registers | stack | shared |\n|---|---|---|---|---|---|---|")
    for use in uses:
        print(
            f"| {use.case} | {use.kernel} | {use.arch} | {use.num_warps} | {use.registers} | {use.stack_bytes} "
            f"| {use.shared_bytes} |"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(use) for use in uses], indent=1) + "\n")


if __name__ == "__main__":
    main()
