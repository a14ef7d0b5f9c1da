"""Turns the kernels' text into code for this machine and runs it on OpenMP's threads, the ones torch uses itself.

llvmlite (LLVM as a Python package) does the compiling, some tens of milliseconds a kernel; nothing else need be
installed. Where it is missing, `load_kernels` says so by returning None, and torch's operators serve.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.backends.cpu.kernel_ir import MAX_ROWS, Expansion, Kernel, module_text

logger = logging.getLogger(__name__)

_MAPS = Path("/proc/self/maps")
_OPENMP = re.compile(r"\S*/lib(?:gomp|iomp5|omp)[^/]*\.so\S*")


class CompiledKernels:
    """The kernels of one kind of weight, for 1 to `MAX_ROWS` rows.

    Args:
        functions: address of each, by number of rows; 0 is the expansion.
        parallel: OpenMP's way to run one of them on several threads.
        keep: what the code lives in.
    """

    def __init__(self, functions: dict[int, int], parallel: Callable[..., Any], keep: object) -> None:
        self._functions = functions
        self._parallel = parallel
        self._keep = keep

    def run(self, rows: int, arguments: int, num_threads: int) -> None:
        """Runs one and returns when all threads have done their blocks.

        Args:
            rows: 1 to `MAX_ROWS`; 0 expands the weight.
            arguments: address of its arguments.
            num_threads: how many threads.
        """
        self._parallel(self._functions[rows], arguments, num_threads, 0)


@functools.cache
def load_kernels(bits: int, arithmetic: str, has_offsets: bool) -> CompiledKernels | None:
    """Compiles the kernels of one kind, or None where that is not possible.

    Args:
        bits: see `Kernel`.
        arithmetic: see `Kernel`; "bf16" only where `has_bf16_products`.
        has_offsets: see `Kernel`.
    """
    openmp = _openmp()
    if openmp is None:
        return None
    try:
        import llvmlite.binding as llvm
    except ImportError:
        logger.info("llvmlite is not installed: quantised weights are multiplied by torch's operators")
        return None
    _initialise(llvm)
    for name in ("omp_get_thread_num", "omp_get_num_threads"):
        address = ctypes.cast(getattr(openmp, name), ctypes.c_void_p).value
        llvm.add_symbol(name, address)
    kernels = [Kernel(bits, arithmetic, rows, has_offsets) for rows in range(1, MAX_ROWS + 1)]
    target = llvm.Target.from_default_triple()
    machine = target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, jit=True
    )
    expansion = Expansion(bits, arithmetic, has_offsets)
    module = llvm.parse_assembly(module_text([*kernels, expansion]))
    module.triple = target.triple
    module.data_layout = str(machine.target_data)
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    llvm.create_pass_builder(machine, options).getModulePassManager().run(
        module, llvm.create_pass_builder(machine, options)
    )
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    functions = {kernel.rows: engine.get_function_address(kernel.name) for kernel in kernels}
    functions[0] = engine.get_function_address(expansion.name)
    parallel = openmp.GOMP_parallel
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return CompiledKernels(functions, parallel, engine)


@functools.cache
def has_bf16_products() -> bool:
    """Whether this processor multiplies bfloat16 pairs (AVX512-BF16) and permutes 16-bit words (AVX512-BW)."""
    try:
        import llvmlite.binding as llvm
    except ImportError:
        return False
    _initialise(llvm)
    features = llvm.get_host_cpu_features()
    return bool(features.get("avx512bf16") and features.get("avx512bw"))


@functools.cache
def _initialise(llvm: Any) -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


@functools.cache
def _openmp() -> ctypes.CDLL | None:
    """The OpenMP library that torch has loaded: with another one, two pools of threads would fight for the cores."""
    try:
        found = {match.group() for line in _MAPS.read_text().splitlines() if (match := _OPENMP.search(line))}
    except OSError:
        return None
    for path in sorted(found):
        library = ctypes.CDLL(path)
        if hasattr(library, "GOMP_parallel"):
            return library
    return None
