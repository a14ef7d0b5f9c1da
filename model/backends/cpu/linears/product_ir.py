"""The text of the CPU kernels, in LLVM's language: what the machine's own compiler library turns into code at start.

One kernel multiplies M rows of activations with a packed weight (`packing.py` has the layout). The weight is read once,
in order, and each value is expanded in registers and used for all M rows; for more rows than a kernel has, a block
of weights is used again while it is in the cache. Two ways to do the arithmetic:

- `bf16`: AVX512-BF16's dot product of pairs, accumulating in float32. Integers up to 8 bits are exact in bfloat16, so
  nothing is lost before the group's scale is applied, in float32.
- `float32`: multiply-add on any processor.

Every kernel adds a row's products in one order, input by input and group by group, however many rows it has: a row's
result is the same, bit for bit, alone and in any company. Whoever changes a kernel must keep that.

A new weight format enters in three places: `pack_*` in packing.py says how its values lie in 64-byte vectors (`bits`
of each, `INPUTS_PER_VECTOR` inputs of 16 outputs), `_Writer._pair` and `_single` say how such a vector becomes numbers,
and a `make_*_linear` beside gptq_linear.py hands packed values, scales and offsets of each group to `PackedLinear`.

It knows nothing of torch; it only writes text.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from model.backends.cpu.ir.writer import FMA_DECLARATION, LANES, IRWriter, everywhere

VECTORS = 4  # in a block of outputs
BLOCK = LANES * VECTORS
INPUTS_PER_VECTOR = {4: 8, 8: 4, 16: 2, 32: 1}  # how many inputs' weights 64 bytes hold for 16 outputs
UNROLL = {4: 1, 8: 1, 16: 4, 32: 4}  # such vectors in a turn of the innermost loop
MAX_ROWS = 6  # 4 accumulators each and a vector of weights fit into 32 registers
# How many of a block's vectors a pass over its weights takes, by rows, where a vector needs two registers of 16 (AVX2)
# or four of 32 (NEON). The order of sums is the same.
_NARROW_VECTORS = {1: 4, 2: 2, 3: 2}

# Where each argument stands in the array of 64-bit words that a kernel gets.
# All rows are divided into `many` runs of one kernel and `few` of the one for a row less.
ARGUMENTS = (
    *("weight", "scales", "offsets", "bias", "x", "x_sums", "out"),
    *("blocks", "groups", "vectors", "n", "k", "rows", "many", "few", "many_kernel", "few_kernel"),
)
_NUM_ADDRESSES = 7

_DECLARATIONS = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
declare <32 x i16> @llvm.x86.avx512.permvar.hi.512(<32 x i16>, <32 x i16>)
declare <16 x float> @llvm.x86.avx512.permvar.sf.512(<16 x float>, <16 x i32>)
declare <16 x float> @llvm.masked.gather.v16f32.v16p0(<16 x ptr>, i32, <16 x i1>, <16 x float>)
declare i32 @omp_get_thread_num()
declare i32 @omp_get_num_threads()
"""


@dataclass(frozen=True)
class Kernel:
    """What distinguishes one kernel from another.

    Attributes:
        bits: of a weight: 4 or 8 (integers with a scale for each group), 16 or 32 (bfloat16 or float32, one group, no
            scales).
        arithmetic: "bf16" (activations and results too are bfloat16) or "float32" (both float32).
        rows: M, from 1 to `MAX_ROWS`.
        has_offsets: whether zeros differ from the middle, so that `scale * (zero - middle) * sum(x)` is taken off.
        wide_results: whether results are float32 where the activations are bfloat16.
        codes: of 4 bits: the level of each value, where they are not evenly spaced.
        has_permutes: whether a register holds a whole vector, and the processor looks 16 levels up at once (AVX-512).
    """

    bits: int
    arithmetic: str
    rows: int
    has_offsets: bool = False
    wide_results: bool = False
    codes: tuple[float, ...] | None = None
    has_permutes: bool = False

    @property
    def has_scales(self) -> bool:
        """Whether a group's sum is multiplied by a scale."""
        return self.bits < 16

    @property
    def vectors_at_once(self) -> int:
        """How many of a block's vectors a pass over its weights takes."""
        return VECTORS if self.has_permutes else _NARROW_VECTORS.get(self.rows, 1)

    @property
    def name(self) -> str:
        """Of its function, which takes the arguments' address, a first and a last block, and the first row."""
        return f"rows{self.rows}"

    @cached_property
    def text(self) -> str:
        """The kernel's functions."""
        return _Writer(self).write()


_CODES = "codes"  # the table's name

# What OpenMP runs on every thread: its share of the blocks, each for all rows.
SHARE = "share"
_SHARE_TEXT = f"""
define void @{SHARE}(ptr %arguments) {{
entry:
  %id = call i32 @omp_get_thread_num()
  %all = call i32 @omp_get_num_threads()
  %id64 = zext i32 %id to i64
  %all64 = zext i32 %all to i64
  %blocks.at = getelementptr i64, ptr %arguments, i64 {ARGUMENTS.index("blocks")}
  %blocks = load i64, ptr %blocks.at
  %rows.at = getelementptr i64, ptr %arguments, i64 {ARGUMENTS.index("rows")}
  %rows = load i64, ptr %rows.at
  %many.at = getelementptr i64, ptr %arguments, i64 {ARGUMENTS.index("many")}
  %many = load i64, ptr %many.at
  %few.at = getelementptr i64, ptr %arguments, i64 {ARGUMENTS.index("few")}
  %few = load i64, ptr %few.at
  %many_kernel.at = getelementptr i64, ptr %arguments, i64 {ARGUMENTS.index("many_kernel")}
  %many_kernel = load ptr, ptr %many_kernel.at
  %few_kernel.at = getelementptr i64, ptr %arguments, i64 {ARGUMENTS.index("few_kernel")}
  %few_kernel = load ptr, ptr %few_kernel.at
  %rows.less = sub i64 %rows, 1
  %runs = add i64 %many, %few
  %a = mul i64 %blocks, %id64
  %first = udiv i64 %a, %all64
  %id.next = add i64 %id64, 1
  %b = mul i64 %blocks, %id.next
  %last = udiv i64 %b, %all64
  br label %block.test
block.test:
  %block = phi i64 [ %first, %entry ], [ %block.next, %run.end ]
  %block.next = add i64 %block, 1
  %more = icmp ult i64 %block, %last
  br i1 %more, label %run.test, label %end
run.test:
  %run = phi i64 [ 0, %block.test ], [ %run.next, %run.body ]
  %row = phi i64 [ 0, %block.test ], [ %row.next, %run.body ]
  %run.more = icmp ult i64 %run, %runs
  br i1 %run.more, label %run.body, label %run.end
run.body:
  %is.many = icmp ult i64 %run, %many
  %kernel = select i1 %is.many, ptr %many_kernel, ptr %few_kernel
  %height = select i1 %is.many, i64 %rows, i64 %rows.less
  call void %kernel(ptr %arguments, i64 %block, i64 %block.next, i64 %row)
  %row.next = add i64 %row, %height
  %run.next = add i64 %run, 1
  br label %run.test
run.end:
  br label %block.test
end:
  ret void
}}
"""


def module_text(kernels: Sequence[Kernel]) -> str:
    """A module with these kernels, which have the same codes, and what shares their work among threads."""
    table = ", ".join(f"float {_float_text(level)}" for level in kernels[0].codes or (0.0,) * 16)
    codes = f"@{_CODES} = private constant [16 x float] [{table}], align 64\n"
    return _DECLARATIONS + FMA_DECLARATION + codes + _SHARE_TEXT + "\n".join(kernel.text for kernel in kernels)


class _Writer(IRWriter):
    """Writes one kernel; accumulators are stack slots, which LLVM moves into registers."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self.kernel = kernel
        self.is_bf16 = kernel.arithmetic == "bf16"
        self.vectors = range(VECTORS)  # of the pass that is being written

    def write(self) -> str:
        """The function's text."""
        kernel = self.kernel
        firsts = range(0, VECTORS, kernel.vectors_at_once)
        loops = [f"{name}{first}" for first in firsts for name in ("group", "step")]
        parameters = "ptr %arguments, i64 %first, i64 %last, i64 %row"
        self.begin(f"{kernel.name}({parameters})", ARGUMENTS, _NUM_ADDRESSES, ("block", *loops))
        for m in range(kernel.rows):
            for v in range(VECTORS):
                self.do(f"%acc.{m}.{v} = alloca <16 x float>")
                self.do(f"%part.{m}.{v} = alloca <16 x float>")
        self.loop("block", "%first", "%last", self._block)
        self.end()
        return self.text

    def _block(self) -> None:
        self.do(f"%column = mul i64 %block, {BLOCK}")
        self.do("%block.groups = mul i64 %block, %groups")
        for first in range(0, VECTORS, self.kernel.vectors_at_once):
            self.vectors = range(first, first + self.kernel.vectors_at_once)
            self._pass(str(first))

    def _pass(self, suffix: str) -> None:
        """Some of the block's vectors, over all groups."""
        kernel = self.kernel
        for v in self.vectors:
            at = self.offset("%column", v * LANES)
            address = self.emit(f"getelementptr float, ptr %bias, i64 {at}")
            bias = self.emit(f"load <16 x float>, ptr {address}, align 4")
            for m in range(kernel.rows):
                self.do(f"store <16 x float> {bias}, ptr %acc.{m}.{v}")
        self.loop(f"group{suffix}", "0", "%groups", lambda: self._group(suffix))
        for m in range(kernel.rows):
            row = self.emit(f"mul i64 %n, {self.offset('%row', m)}")
            for v in self.vectors:
                value = self.emit(f"load <16 x float>, ptr %acc.{m}.{v}")
                self._store(value, self.offset(self.emit(f"add i64 {row}, %column"), v * LANES))

    def _store(self, value: str, at: str) -> None:
        if self.is_bf16 and not self.kernel.wide_results:
            value = self.emit(f"fptrunc <16 x float> {value} to <16 x bfloat>")
            address = self.emit(f"getelementptr i16, ptr %out, i64 {at}")
            self.do(f"store <16 x bfloat> {value}, ptr {address}, align 2")
        else:
            address = self.emit(f"getelementptr float, ptr %out, i64 {at}")
            self.do(f"store <16 x float> {value}, ptr {address}, align 4")

    def _group(self, suffix: str) -> None:
        for m in range(self.kernel.rows):
            for v in self.vectors:
                self.do(f"store <16 x float> zeroinitializer, ptr %part.{m}.{v}")
        place = self.emit(f"add i64 %block.groups, %group{suffix}")
        self.loop(f"step{suffix}", "0", "%vectors", lambda: self._step(f"%group{suffix}", place, f"%step{suffix}"))
        self._add_group(f"%group{suffix}", self.emit(f"mul i64 {place}, {BLOCK}"))

    def _add_group(self, group: str, scale_at: str) -> None:
        """Adds the group's sums, times its scales, to the accumulators."""
        kernel = self.kernel
        for v in self.vectors:
            scale = self._table("scales", scale_at, v) if kernel.has_scales else ""
            offset = self._table("offsets", scale_at, v) if kernel.has_offsets else ""
            for m in range(kernel.rows):
                value = self.emit(f"load <16 x float>, ptr %part.{m}.{v}")
                total = self.emit(f"load <16 x float>, ptr %acc.{m}.{v}")
                total = self.fma(value, scale, total) if scale else self.add(value, total)
                if offset:
                    total = self.fma(self._x_sum(m, group), offset, total)
                self.do(f"store <16 x float> {total}, ptr %acc.{m}.{v}")

    def _table(self, name: str, first: str, v: int) -> str:
        at = self.offset(first, v * LANES)
        address = self.emit(f"getelementptr float, ptr %{name}, i64 {at}")
        return self.emit(f"load <16 x float>, ptr {address}, align 4")

    def _x_sum(self, m: int, group: str) -> str:
        row = self.emit(f"mul i64 %groups, {self.offset('%row', m)}")
        at = self.emit(f"add i64 {row}, {group}")
        address = self.emit(f"getelementptr float, ptr %x_sums, i64 {at}")
        return self.splat("float", self.emit(f"load float, ptr {address}, align 4"))

    def _step(self, group: str, place: str, step: str) -> None:
        """A few times 64 bytes of weights for each vector of outputs, times all rows.

        Args:
            group: its number.
            place: of the block's group among all blocks' groups.
            step: its number within the group.
        """
        bits = self.kernel.bits
        stride = 2 if self.is_bf16 else 1
        at = self.emit(f"add i64 {self.emit(f'mul i64 {place}, %vectors')}, {step}")
        weights = self.emit(f"mul i64 {at}, {UNROLL[bits] * VECTORS * 64}")
        at = self.emit(f"add i64 {self.emit(f'mul i64 {group}, %vectors')}, {step}")
        inputs = self.emit(f"mul i64 {at}, {UNROLL[bits] * INPUTS_PER_VECTOR[bits]}")
        for part in range(UNROLL[bits]):
            raw = {v: self._load(weights, part * VECTORS + v) for v in self.vectors}
            for first in range(0, INPUTS_PER_VECTOR[bits], stride):
                k = self.offset(inputs, part * INPUTS_PER_VECTOR[bits] + first)
                activations = [self._activation(m, k) for m in range(self.kernel.rows)]
                for v in self.vectors:
                    weight = self._pair(raw[v], first) if self.is_bf16 else self._single(raw[v], first)
                    for m, x in enumerate(activations):
                        self._multiply_add(f"%part.{m}.{v}", weight, x)

    def _load(self, first: str, index: int) -> str:
        address = self.emit(f"getelementptr i8, ptr %weight, i64 {self.offset(first, 64 * index)}")
        return self.emit(f"load <16 x i32>, ptr {address}, align 64")

    def _multiply_add(self, slot: str, weight: str, x: str) -> None:
        total = self.emit(f"load <16 x float>, ptr {slot}")
        if self.is_bf16:
            total = self.emit(
                "call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512("
                f"<16 x float> {total}, <32 x bfloat> {weight}, <32 x bfloat> {x})"
            )
        else:
            total = self.fma(weight, x, total)
        self.do(f"store <16 x float> {total}, ptr {slot}")

    def _activation(self, m: int, k: str) -> str:
        row = self.emit(f"mul i64 %k, {self.offset('%row', m)}")
        at = self.emit(f"add i64 {row}, {k}")
        if not self.is_bf16:
            address = self.emit(f"getelementptr float, ptr %x, i64 {at}")
            return self.splat("float", self.emit(f"load float, ptr {address}, align 4"))
        address = self.emit(f"getelementptr i16, ptr %x, i64 {at}")
        both = self.splat("i32", self.emit(f"load i32, ptr {address}, align 2"))
        return self.emit(f"bitcast <16 x i32> {both} to <32 x bfloat>")

    def _pair(self, raw: str, first: int) -> str:
        """Weights of inputs `first` and `first + 1` as bfloat16, side by side for each output."""
        bits = self.kernel.bits
        if bits == 16:
            return self.emit(f"bitcast <16 x i32> {raw} to <32 x bfloat>")
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
        levels = self.kernel.codes or tuple(q - 8.0 for q in range(16))
        table = ", ".join(f"i16 {_bf16_bits(level)}" for level in (*levels, *levels))
        found = self.emit(f"call <32 x i16> @llvm.x86.avx512.permvar.hi.512(<32 x i16> <{table}>, <32 x i16> {words})")
        return self.emit(f"bitcast <32 x i16> {found} to <32 x bfloat>")

    def _single(self, raw: str, index: int) -> str:
        """Weights of one input as float32."""
        bits = self.kernel.bits
        if bits == 32:
            return self.emit(f"bitcast <16 x i32> {raw} to <16 x float>")
        if bits == 16:
            value = self.emit(f"and <16 x i32> {raw}, {_all(-65536)}" if index else f"shl <16 x i32> {raw}, {_all(16)}")
            return self.emit(f"bitcast <16 x i32> {value} to <16 x float>")
        if bits == 8:
            return self.emit(f"bitcast <16 x i32> {self._bits_of_single(raw, index)} to <16 x float>")
        place = 16 * (index % 2) + 4 * (index // 2)
        value = self.emit(f"lshr <16 x i32> {raw}, {_all(place)}")
        value = self.emit(f"and <16 x i32> {value}, {_all(15)}")
        if self.kernel.codes is not None:
            return self._look_up(value)
        value = self.emit(f"sub <16 x i32> {value}, {_all(8)}")
        return self.emit(f"sitofp <16 x i32> {value} to <16 x float>")

    def _look_up(self, indices: str) -> str:
        """The levels of 16 values."""
        if self.kernel.has_permutes:
            table = ", ".join(f"float {_float_text(level)}" for level in self.kernel.codes or ())
            return self.emit(
                f"call <16 x float> @llvm.x86.avx512.permvar.sf.512(<16 x float> <{table}>, <16 x i32> {indices})"
            )
        places = self.emit(f"getelementptr float, ptr @{_CODES}, <16 x i32> {indices}")
        return self.emit(
            f"call <16 x float> @llvm.masked.gather.v16f32.v16p0(<16 x ptr> {places}, i32 4,"
            f" <16 x i1> {everywhere('i1 true')}, <16 x float> poison)"
        )

    def _bits_of_single(self, raw: str, index: int) -> str:
        value = raw
        if index < 3:
            value = self.emit(f"shl <16 x i32> {value}, {_all(24 - 8 * index)}")
        value = self.emit(f"ashr <16 x i32> {value}, {_all(24)}")
        value = self.emit(f"sitofp <16 x i32> {value} to <16 x float>")
        return self.emit(f"bitcast <16 x float> {value} to <16 x i32>")


def _all(value: int) -> str:
    return everywhere(f"i32 {value}")


def _float_text(value: float) -> str:
    """A float32 as LLVM reads it exactly: the bits of the same number in float64."""
    (rounded,) = struct.unpack("<f", struct.pack("<f", value))
    return f"0x{struct.pack('>d', rounded).hex().upper()}"


def _bf16_bits(value: float) -> int:
    """The bits of the nearest bfloat16, ties to even; small integers are exact."""
    bits: int = struct.unpack("<I", struct.pack("<f", value))[0]
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
