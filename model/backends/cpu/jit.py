"""Turns the kernels' text into code for this machine and runs it on OpenMP's threads, the ones torch uses itself.

llvmlite (LLVM as a Python package) does the compiling, up to half a second for the kernels of one kind, which are kept
for later starts (object_cache.py); nothing else need be installed. Where it is missing, `compile_functions`
returns None, and torch's operators serve.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from model.backends.cpu.object_cache import user_cache

logger = logging.getLogger(__name__)

_MAPS = Path("/proc/self/maps")
_OPENMP = re.compile(r"\S*/lib(?:gomp|iomp5|omp)[^/]*\.so\S*")
_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Code(NamedTuple):
    """Compiled functions.

    Attributes:
        addresses: where each function is, by name.
        parallel: OpenMP's GOMP_parallel: (function, argument, number of threads, 0).
        engine: LLVM's object that owns the code.
    """

    addresses: dict[str, int]
    parallel: Callable[..., Any]
    engine: object

    def run(self, name: str, num_threads: int, *words: int) -> None:
        """Runs a function on several threads, or on the calling one alone, and returns when all have done it.

        Args:
            name: a function that takes the address of its arguments.
            num_threads: how many threads run it.
            words: the arguments, 64 bits each.
        """
        self.run_at(name, num_threads, struct.pack(f"{len(words)}q", *words))

    def run_at(self, name: str, num_threads: int, arguments: bytes | int) -> None:
        """As `run`, with the words themselves or the address where they are kept."""
        if num_threads == 1:
            _FUNCTION(self.addresses[name])(arguments)
        else:
            self.parallel(self.addresses[name], arguments, num_threads, 0)


def compile_functions(text: str, names: Sequence[str]) -> Code | None:
    """Compiles a module for this processor, or returns None where there is no compiler or no OpenMP.

    Args:
        text: the module in LLVM's language.
        names: the functions that are wanted of it.
    """
    openmp, llvm = _openmp(), _llvm()
    if openmp is None or llvm is None:
        return None
    for name in ("omp_get_thread_num", "omp_get_num_threads", "GOMP_barrier"):
        llvm.add_symbol(name, ctypes.cast(getattr(openmp, name), ctypes.c_void_p).value)
    try:
        engine = _compile(llvm, text)
    except (RuntimeError, OSError):  # llvmlite raises RuntimeError for all that LLVM refuses
        logger.warning("LLVM cannot compile the CPU kernels for this machine: torch's operators serve", exc_info=True)
        return None
    parallel = openmp.GOMP_parallel
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return Code({name: engine.get_function_address(name) for name in names}, parallel, engine)


# How hard LLVM tries, in its passes and in generating code; part of the cache's key.
_PASS_LEVEL, _CODE_LEVEL = 2, 3


def _compile(llvm: Any, text: str) -> Any:
    """An engine that holds the module's code for this processor."""
    import llvmlite

    target = llvm.Target.from_default_triple()
    cpu, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()

    def machine() -> Any:
        return target.create_target_machine(cpu=cpu, features=features, opt=_CODE_LEVEL, jit=True)

    cache = user_cache()
    compiler = f"llvmlite {llvmlite.__version__} LLVM {llvm.llvm_version_info} {_PASS_LEVEL} {_CODE_LEVEL}"
    source = "\n".join((compiler, target.triple, cpu, features, text))
    code = cache.read(source)
    if code is None:
        code = _object(llvm, target, machine(), text)
        cache.keep(source, code)
    empty = llvm.parse_assembly("")
    empty.triple = target.triple
    engine = llvm.create_mcjit_compiler(empty, machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine


def _object(llvm: Any, target: Any, machine: Any, text: str) -> bytes:
    """The module's code, to be loaded by an engine of the same machine."""
    module = llvm.parse_assembly(text)
    module.triple = target.triple
    module.data_layout = str(machine.target_data)
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=_PASS_LEVEL))
    builder.getModulePassManager().run(module, builder)
    code: bytes = machine.emit_object(module)
    return code


@functools.cache
def has_bf16_products() -> bool:
    """Whether this processor multiplies bfloat16 pairs (AVX512-BF16) and permutes 16-bit words (AVX512-BW)."""
    return _has("avx512bf16") and _has("avx512bw")


def has_integer_products() -> bool:
    """Whether this processor multiplies pairs of 16-bit integers and adds them up (AVX512-VNNI)."""
    return _has("avx512vnni") and _has("avx512bw")


def has_permutes() -> bool:
    """Whether this processor permutes vectors of 16 numbers (AVX-512)."""
    return _has("avx512f")


@functools.cache
def _has(feature: str) -> bool:
    """Whether the compiler is there and this processor has a feature, of LLVM's name."""
    llvm = _llvm()
    return llvm is not None and bool(llvm.get_host_cpu_features().get(feature))


def _llvm() -> Any | None:
    """LLVM through llvmlite, ready to compile for this processor; None where it is not installed."""
    try:
        import llvmlite.binding as llvm
    except ImportError:
        logger.info("llvmlite is not installed: torch's operators serve instead of the CPU kernels")
        return None
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm


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
