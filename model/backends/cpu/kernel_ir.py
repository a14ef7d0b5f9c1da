"""The text of the CPU kernels, in LLVM's language: what the machine's own compiler library turns into code at start.

One kernel multiplies M rows of activations with a packed weight (`packing.py` has the layout). The weight is read once,
in order, and each value is expanded in registers and used for all M rows. Two ways to do the arithmetic:

- `bf16`: AVX512-BF16's dot product of pairs, accumulating in float32. Integers up to 8 bits are exact in bfloat16, so
  nothing is lost before the group's scale is applied, in float32.
- `float32`: multiply-add on any processor.

It knows nothing of torch; it only writes text.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

LANES = 16  # outputs in a vector
VECTORS = 4  # in a block of outputs
BLOCK = LANES * VECTORS
INPUTS_PER_VECTOR = {4: 8, 8: 4}  # how many inputs' weights 64 bytes hold for 16 outputs
MAX_ROWS = 8

# Where each argument stands in the array of 64-bit words that a kernel gets.
ARGUMENTS = ("weight", "scales", "offsets", "bias", "x", "x_sums", "out", "blocks", "groups", "vectors", "n", "k")

_DECLARATIONS = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
declare <32 x i16> @llvm.x86.avx512.permvar.hi.512(<32 x i16>, <32 x i16>)
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
declare i32 @omp_get_thread_num()
declare i32 @omp_get_num_threads()
"""


@dataclass(frozen=True)
class Kernel:
    """What distinguishes one kernel from another.

    Attributes:
        bits: of a weight, 4 or 8.
        arithmetic: "bf16" (activations and results too are bfloat16) or "float32" (both float32).
        rows: M, from 1 to `MAX_ROWS`.
        has_offsets: whether zeros differ from the middle, so that `scale * (zero - middle) * sum(x)` is taken off.
    """

    bits: int
    arithmetic: str
    rows: int
    has_offsets: bool

    @property
    def name(self) -> str:
        """Of its function, which takes the address of the arguments and shares the blocks among OpenMP's threads."""
        return f"rows{self.rows}_w{self.bits}_{self.arithmetic}_{'offsets' if self.has_offsets else 'plain'}"

    @cached_property
    def text(self) -> str:
        """The kernel's functions."""
        return _Writer(self).write()


@dataclass(frozen=True)
class Expansion:
    """Writes the whole weight out as [K, N], for products of many rows.

    Attributes:
        bits: 4 or 8.
        arithmetic: the type it is written in, "bf16" or "float32".
        has_offsets: see `Kernel`.
    """

    bits: int
    arithmetic: str
    has_offsets: bool

    @property
    def name(self) -> str:
        """Of its function."""
        return f"expand_w{self.bits}_{self.arithmetic}_{'offsets' if self.has_offsets else 'plain'}"

    @cached_property
    def text(self) -> str:
        """The functions."""
        return _Writer(Kernel(self.bits, self.arithmetic, 0, self.has_offsets), self.name).write()


def module_text(kernels: Sequence[Kernel | Expansion]) -> str:
    """A module with these kernels."""
    return _DECLARATIONS + "\n".join(kernel.text for kernel in kernels)


class _Writer:
    """Writes one kernel; accumulators are stack slots, which LLVM moves into registers. No rows: the expansion."""

    def __init__(self, kernel: Kernel, name: str = "") -> None:
        self.kernel = kernel
        self.name = name or kernel.name
        self.lines: list[str] = []
        self.count = 0
        # The more rows, the fewer vectors at a time: accumulators and weights have to fit into 32 registers.
        self.width = VECTORS if kernel.rows <= 6 else VECTORS // 2
        # With few accumulators two take turns, or each dot product would wait for the one before.
        self.turns = 2 if kernel.rows * self.width <= 8 else 1
        self.is_bf16 = kernel.arithmetic == "bf16"
        self.tables: list[tuple[str, str]] = []

    def emit(self, text: str) -> str:
        self.count += 1
        self.lines.append(f"  %t{self.count} = {text}")
        return f"%t{self.count}"

    def do(self, text: str) -> None:
        self.lines.append(f"  {text}")

    def label(self, name: str) -> None:
        self.lines.append(f"{name}:")

    def write(self) -> str:
        kernel = self.kernel
        self.lines.append(f"define void @{self.name}_part(ptr %arguments, i64 %first, i64 %last) {{")
        self.label("entry")
        for i, name in enumerate(ARGUMENTS):
            kind = "ptr" if i < 7 else "i64"
            self.do(f"%{name}.at = getelementptr i64, ptr %arguments, i64 {i}")
            self.do(f"%{name} = load {kind}, ptr %{name}.at")
        accumulators = [(m, v) for m in range(kernel.rows) for v in range(self.width)]
        for m, v in accumulators:
            self.do(f"%acc.{m}.{v} = alloca <16 x float>")
            for turn in range(self.turns):
                self.do(f"%part.{m}.{v}.{turn} = alloca <16 x float>")
        for loop in ("block", "side", "group", "step"):
            self.do(f"%{loop}.slot = alloca i64")
        self._loop("block", "%first", "%last", self._block)
        self.do("ret void")
        self.lines.append("}")
        return "\n".join(self.lines) + "\n" + self._shared()

    def _shared(self) -> str:
        name = self.name
        return f"""
define void @{name}(ptr %arguments) {{
  %id = call i32 @omp_get_thread_num()
  %all = call i32 @omp_get_num_threads()
  %id64 = zext i32 %id to i64
  %all64 = zext i32 %all to i64
  %blocks.at = getelementptr i64, ptr %arguments, i64 {ARGUMENTS.index("blocks")}
  %blocks = load i64, ptr %blocks.at
  %a = mul i64 %blocks, %id64
  %first = udiv i64 %a, %all64
  %next = add i64 %id64, 1
  %b = mul i64 %blocks, %next
  %last = udiv i64 %b, %all64
  call void @{name}_part(ptr %arguments, i64 %first, i64 %last)
  ret void
}}
"""

    def _loop(self, name: str, first: str, last: str, body: Callable[[], None]) -> None:
        self.do(f"store i64 {first}, ptr %{name}.slot")
        self.do(f"br label %{name}.test")
        self.label(f"{name}.test")
        self.do(f"%{name} = load i64, ptr %{name}.slot")
        self.do(f"%{name}.more = icmp ult i64 %{name}, {last}")
        self.do(f"br i1 %{name}.more, label %{name}.body, label %{name}.end")
        self.label(f"{name}.body")
        body()
        self.do(f"%{name}.next = add i64 %{name}, 1")
        self.do(f"store i64 %{name}.next, ptr %{name}.slot")
        self.do(f"br label %{name}.test")
        self.label(f"{name}.end")

    def _block(self) -> None:
        self._loop("side", "0", str(VECTORS // self.width), self._side)

    def _side(self) -> None:
        kernel = self.kernel
        self.do(f"%column.a = mul i64 %block, {BLOCK}")
        self.do(f"%column.b = mul i64 %side, {self.width * LANES}")
        self.do("%column = add i64 %column.a, %column.b")
        for v in range(self.width if kernel.rows else 0):
            at = self._offset("%column", v * LANES)
            address = self.emit(f"getelementptr float, ptr %bias, i64 {at}")
            bias = self.emit(f"load <16 x float>, ptr {address}, align 4")
            for m in range(kernel.rows):
                self.do(f"store <16 x float> {bias}, ptr %acc.{m}.{v}")
        self._loop("group", "0", "%groups", self._group)
        for m in range(kernel.rows):
            for v in range(self.width):
                value = self.emit(f"load <16 x float>, ptr %acc.{m}.{v}")
                row = self.emit(f"mul i64 %n, {m}")
                self._store(value, self._offset(self.emit(f"add i64 {row}, %column"), v * LANES))

    def _store(self, value: str, at: str) -> None:
        if self.is_bf16:
            value = self.emit(f"fptrunc <16 x float> {value} to <16 x bfloat>")
            address = self.emit(f"getelementptr i16, ptr %out, i64 {at}")
            self.do(f"store <16 x bfloat> {value}, ptr {address}, align 2")
        else:
            address = self.emit(f"getelementptr float, ptr %out, i64 {at}")
            self.do(f"store <16 x float> {value}, ptr {address}, align 4")

    def _group(self) -> None:
        kernel = self.kernel
        for m in range(kernel.rows):
            for v in range(self.width):
                for turn in range(self.turns):
                    self.do(f"store <16 x float> zeroinitializer, ptr %part.{m}.{v}.{turn}")
        self.do("%scale.a = mul i64 %block, %groups")
        self.do("%scale.b = add i64 %scale.a, %group")
        self.do(f"%scale.c = mul i64 %scale.b, {BLOCK}")
        self.do("%scale.at = add i64 %scale.c, %column.b")
        if not kernel.rows:
            self.tables = [
                (self._table("scales", v), self._table("offsets", v) if kernel.has_offsets else "zeroinitializer")
                for v in range(self.width)
            ]
        self._loop("step", "0", "%vectors", self._step if kernel.rows else self._expand_step)
        if kernel.rows:
            self._add_group()

    def _add_group(self) -> None:
        """Adds the group's sums, times its scales, to the accumulators."""
        kernel = self.kernel
        for v in range(self.width):
            scale = self._table("scales", v)
            offset = self._table("offsets", v) if kernel.has_offsets else ""
            for m in range(kernel.rows):
                value = self.emit(f"load <16 x float>, ptr %part.{m}.{v}.0")
                for turn in range(1, self.turns):
                    other = self.emit(f"load <16 x float>, ptr %part.{m}.{v}.{turn}")
                    value = self.emit(f"fadd <16 x float> {value}, {other}")
                total = self.emit(f"load <16 x float>, ptr %acc.{m}.{v}")
                total = self._fma(value, scale, total)
                if offset:
                    total = self._fma(self._x_sum(m), offset, total)
                self.do(f"store <16 x float> {total}, ptr %acc.{m}.{v}")

    def _table(self, name: str, v: int) -> str:
        at = self._offset("%scale.at", v * LANES)
        address = self.emit(f"getelementptr float, ptr %{name}, i64 {at}")
        return self.emit(f"load <16 x float>, ptr {address}, align 4")

    def _x_sum(self, m: int) -> str:
        row = self.emit(f"mul i64 %groups, {m}")
        at = self.emit(f"add i64 {row}, %group")
        address = self.emit(f"getelementptr float, ptr %x_sums, i64 {at}")
        return self._splat("float", self.emit(f"load float, ptr {address}, align 4"))

    def _expand_step(self) -> None:
        """Writes the weights of 64 bytes a vector."""
        raw = self._load_step()
        for index in range(INPUTS_PER_VECTOR[self.kernel.bits]):
            row = self.emit(f"mul i64 %n, {self._offset('%k.3', index)}")
            at = self.emit(f"add i64 {row}, %column")
            for v in range(self.width):
                scale, offset = self.tables[v]
                self._store(self._fma(self._single(raw[v], index), scale, offset), self._offset(at, v * LANES))

    def _step(self) -> None:
        """64 bytes of weights for each of `width` vectors of outputs, times all rows."""
        inputs = INPUTS_PER_VECTOR[self.kernel.bits]
        raw = self._load_step()
        stride = 2 if self.is_bf16 else 1
        for turn, first in enumerate(range(0, inputs, stride)):
            activations = [self._activation(m, first) for m in range(self.kernel.rows)]
            for v in range(self.width):
                weight = self._pair(raw[v], first) if self.is_bf16 else self._single(raw[v], first)
                for m, x in enumerate(activations):
                    slot = f"%part.{m}.{v}.{turn % self.turns}"
                    total = self.emit(f"load <16 x float>, ptr {slot}")
                    if self.is_bf16:
                        total = self.emit(
                            "call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512("
                            f"<16 x float> {total}, <32 x bfloat> {weight}, <32 x bfloat> {x})"
                        )
                    else:
                        total = self._fma(weight, x, total)
                    self.do(f"store <16 x float> {total}, ptr {slot}")

    def _load_step(self) -> list[str]:
        inputs = INPUTS_PER_VECTOR[self.kernel.bits]
        self.do("%a.1 = mul i64 %block, %groups")
        self.do("%a.2 = add i64 %a.1, %group")
        self.do("%a.3 = mul i64 %a.2, %vectors")
        self.do("%a.4 = add i64 %a.3, %step")
        self.do(f"%a.5 = mul i64 %a.4, {VECTORS * 64}")
        self.do(f"%a.6 = mul i64 %side, {self.width * 64}")
        self.do("%a.7 = add i64 %a.5, %a.6")
        self.do("%k.1 = mul i64 %group, %vectors")
        self.do("%k.2 = add i64 %k.1, %step")
        self.do(f"%k.3 = mul i64 %k.2, {inputs}")
        raw = []
        for v in range(self.width):
            address = self.emit(f"getelementptr i8, ptr %weight, i64 {self._offset('%a.7', 64 * v)}")
            raw.append(self.emit(f"load <16 x i32>, ptr {address}, align 64"))
        return raw

    def _activation(self, m: int, first: int) -> str:
        row = self.emit(f"mul i64 %k, {m}")
        at = self._offset(self.emit(f"add i64 {row}, %k.3"), first)
        if not self.is_bf16:
            address = self.emit(f"getelementptr float, ptr %x, i64 {at}")
            return self._splat("float", self.emit(f"load float, ptr {address}, align 4"))
        address = self.emit(f"getelementptr i16, ptr %x, i64 {at}")
        both = self._splat("i32", self.emit(f"load i32, ptr {address}, align 2"))
        return self.emit(f"bitcast <16 x i32> {both} to <32 x bfloat>")

    def _pair(self, raw: str, first: int) -> str:
        """Weights of inputs `first` and `first + 1` as bfloat16, side by side for each output."""
        bits = self.kernel.bits
        if bits == 8:
            low, high = self._bits_of_single(raw, first), self._bits_of_single(raw, first + 1)
            low = self.emit(f"lshr <16 x i32> {low}, {_all(16)}")
            pair = self.emit(f"or <16 x i32> {low}, {high}")
            return self.emit(f"bitcast <16 x i32> {pair} to <32 x bfloat>")
        words = self.emit(f"bitcast <16 x i32> {raw} to <32 x i16>")
        if first:
            shift = ", ".join([f"i16 {2 * first}"] * 32)
            words = self.emit(f"lshr <32 x i16> {words}, <{shift}>")
        # The permutation reads five bits; the table is twice the same, so the fifth does not matter.
        table = ", ".join(f"i16 {_bf16_bits(q - 8)}" for q in (*range(16), *range(16)))
        found = self.emit(
            f"call <32 x i16> @llvm.x86.avx512.permvar.hi.512(<32 x i16> <{table}>, <32 x i16> {words})"
        )
        return self.emit(f"bitcast <32 x i16> {found} to <32 x bfloat>")

    def _single(self, raw: str, index: int) -> str:
        """Weights of one input as float32."""
        bits = self.kernel.bits
        if bits == 8:
            return self.emit(f"bitcast <16 x i32> {self._bits_of_single(raw, index)} to <16 x float>")
        place = 16 * (index % 2) + 4 * (index // 2)
        value = self.emit(f"lshr <16 x i32> {raw}, {_all(place)}")
        value = self.emit(f"and <16 x i32> {value}, {_all(15)}")
        value = self.emit(f"sub <16 x i32> {value}, {_all(8)}")
        return self.emit(f"sitofp <16 x i32> {value} to <16 x float>")

    def _bits_of_single(self, raw: str, index: int) -> str:
        value = raw
        if index < 3:
            value = self.emit(f"shl <16 x i32> {value}, {_all(24 - 8 * index)}")
        value = self.emit(f"ashr <16 x i32> {value}, {_all(24)}")
        value = self.emit(f"sitofp <16 x i32> {value} to <16 x float>")
        return self.emit(f"bitcast <16 x float> {value} to <16 x i32>")

    def _fma(self, a: str, b: str, c: str) -> str:
        return self.emit(
            f"call <16 x float> @llvm.fma.v16f32(<16 x float> {a}, <16 x float> {b}, <16 x float> {c})"
        )

    def _splat(self, kind: str, value: str) -> str:
        one = self.emit(f"insertelement <16 x {kind}> poison, {kind} {value}, i32 0")
        return self.emit(f"shufflevector <16 x {kind}> {one}, <16 x {kind}> poison, <16 x i32> zeroinitializer")

    def _offset(self, base: str, constant: int) -> str:
        return self.emit(f"add i64 {base}, {constant}") if constant else base


def _all(value: int) -> str:
    return "<" + ", ".join([f"i32 {value}"] * LANES) + ">"


def _bf16_bits(value: int) -> int:
    """The bfloat16 of a small integer, as an integer."""
    bits: int = struct.unpack("<I", struct.pack("<f", float(value)))[0]
    return bits >> 16
