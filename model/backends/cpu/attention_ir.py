"""The text of the kernel for decode attention: one query of each sequence over its cached keys and values.

Work is shared out by sequence and head, each taken by the next free thread. Keys and values are read where they lie,
block by block, in whatever type they are kept, and used as float32; the softmax is in float32 too.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from model.backends.cpu.ir_writer import FMA_DECLARATION, LANES, IRWriter, everywhere

# Where each argument stands in the array of 64-bit words that the kernel gets. Addresses come first.
ARGUMENTS = (
    *("query", "out", "keys", "values", "key_scales", "value_scales", "tables", "lengths", "rows", "scratch", "next"),
    *("items", "heads", "slots", "table_width", "block_size", "scratch_width", "query_stride", "out_stride"),
)
_NUM_ADDRESSES = 11
ATTEND = "attend"

_DECLARATIONS = """
declare <16 x float> @llvm.nearbyint.v16f32(<16 x float>)
declare <16 x float> @llvm.maxnum.v16f32(<16 x float>, <16 x float>)
declare float @llvm.vector.reduce.fadd.v16f32(float, <16 x float>)
declare float @llvm.vector.reduce.fmax.v16f32(<16 x float>)
declare i64 @llvm.umin.i64(i64, i64)
declare i32 @omp_get_thread_num()
"""
# 2 ** f for |f| <= 1/2: the Taylor series of exp(f ln 2), off by 2e-8 at most.
_COEFFICIENTS = [math.log(2) ** i / math.factorial(i) for i in range(8)]
_KINDS = {"float32": (4, "float"), "bfloat16": (2, "i16"), "int8": (1, "i8")}


@dataclass(frozen=True)
class DecodeAttention:
    """A kernel.

    Attributes:
        cache_dtype: "float32", "bfloat16" or "int8" (with a scale for each token and head).
        head_dim: a multiple of 16, at most 256.
    """

    cache_dtype: str
    head_dim: int

    @cached_property
    def text(self) -> str:
        """A module with the function `attend`, which takes the arguments' address and runs on every thread."""
        return _DECLARATIONS + FMA_DECLARATION + "\n" + _Writer(self).write()


class _Writer(IRWriter):
    def __init__(self, kernel: DecodeAttention) -> None:
        super().__init__()
        self.kernel = kernel
        self.vectors = range(kernel.head_dim // LANES)

    def write(self) -> str:
        """The function's text."""
        loops = ("kblock", "key", "top", "exp", "vblock", "value")
        self.begin(f"{ATTEND}(ptr %arguments)", ARGUMENTS, _NUM_ADDRESSES, loops)
        for v in self.vectors:
            self.do(f"%acc.{v} = alloca <16 x float>")
        self.do("%sum.slot = alloca <16 x float>")
        self.do("%max.slot = alloca <16 x float>")
        self.do("%thread = call i32 @omp_get_thread_num()")
        self.do("%thread64 = zext i32 %thread to i64")
        self.do("%scratch.first = mul i64 %thread64, %scratch_width")
        self.do("%scores = getelementptr float, ptr %scratch, i64 %scratch.first")
        self.do("br label %item.test")
        self.label("item.test")
        self.do("%item = atomicrmw add ptr %next, i64 1 monotonic")
        self.do("%item.more = icmp ult i64 %item, %items")
        self.do("br i1 %item.more, label %item.body, label %item.end")
        self.label("item.body")
        self._item()
        self.do("br label %item.test")
        self.label("item.end")
        self.end()
        return self.text

    def _item(self) -> None:
        dim = self.kernel.head_dim
        self.do("%sequence = udiv i64 %item, %heads")
        self.do("%head = urem i64 %item, %heads")
        length_at = self.emit("getelementptr i64, ptr %lengths, i64 %sequence")
        self.do(f"%length = load i64, ptr {length_at}")
        row_at = self.emit("getelementptr i64, ptr %rows, i64 %sequence")
        row = self.emit(f"load i64, ptr {row_at}")
        self.do(f"%head.dims = mul i64 %head, {dim}")
        query = self.emit(f"add i64 {self.emit(f'mul i64 {row}, %query_stride')}, %head.dims")
        out = self.emit(f"add i64 {self.emit(f'mul i64 {row}, %out_stride')}, %head.dims")
        self.do("%head.slots = mul i64 %head, %slots")
        self.do("%table.first = mul i64 %sequence, %table_width")
        short = self.emit("sub i64 %block_size, 1")
        self.do(f"%num.blocks = udiv i64 {self.emit(f'add i64 %length, {short}')}, %block_size")
        queries = []
        for v in self.vectors:
            at = self.emit(f"getelementptr float, ptr %query, i64 {self.offset(query, v * LANES)}")
            queries.append(self.emit(f"load <16 x float>, ptr {at}, align 4"))
            self.do(f"store <16 x float> zeroinitializer, ptr %acc.{v}")
        # The last vector of scores may be part empty: what is there counts for nothing.
        tail = self.emit("and i64 %length, -16")
        at = self.emit(f"getelementptr float, ptr %scores, i64 {tail}")
        self.do(f"store <16 x float> {self._constant(-1e30)}, ptr {at}, align 4")
        self._over_blocks("kblock", "key", lambda slot, place: self._score(queries, slot, place))
        self._softmax()
        self._over_blocks("vblock", "value", self._add_value)
        total = self.emit("load <16 x float>, ptr %sum.slot")
        total = self.emit(f"call reassoc float @llvm.vector.reduce.fadd.v16f32(float 0.0, <16 x float> {total})")
        inverse = self.splat("float", self.emit(f"fdiv float 1.0, {total}"))
        for v in self.vectors:
            value = self.emit(f"load <16 x float>, ptr %acc.{v}")
            value = self.emit(f"fmul <16 x float> {value}, {inverse}")
            at = self.emit(f"getelementptr float, ptr %out, i64 {self.offset(out, v * LANES)}")
            self.do(f"store <16 x float> {value}, ptr {at}, align 4")

    def _over_blocks(self, block: str, token: str, body: Callable[[str, str], None]) -> None:
        """Runs the body for each token, with its slot (of the head) and its place in the scores."""

        def in_block() -> None:
            index = self.emit(f"add i64 %table.first, %{block}")
            at = self.emit(f"getelementptr i32, ptr %tables, i64 {index}")
            number = self.emit(f"sext i32 {self.emit(f'load i32, ptr {at}')} to i64")
            first = self.emit(f"mul i64 {number}, %block_size")
            first = self.emit(f"add i64 {first}, %head.slots")
            place = self.emit(f"mul i64 %{block}, %block_size")
            left = self.emit(f"sub i64 %length, {place}")
            count = self.emit(f"call i64 @llvm.umin.i64(i64 {left}, i64 %block_size)")

            def in_token() -> None:
                body(self.emit(f"add i64 {first}, %{token}"), self.emit(f"add i64 {place}, %{token}"))

            self.loop(token, "0", count, in_token)

        self.loop(block, "0", "%num.blocks", in_block)

    def _score(self, queries: list[str], slot: str, place: str) -> None:
        sums: list[str] = []
        for v in self.vectors:
            key = self._load("keys", slot, v)
            if v < 2:
                sums.append(self.emit(f"fmul <16 x float> {key}, {queries[v]}"))
            else:
                sums[v % 2] = self.fma(key, queries[v], sums[v % 2])
        total = sums[0] if len(sums) == 1 else self.emit(f"fadd <16 x float> {sums[0]}, {sums[1]}")
        score = self.emit(f"call reassoc float @llvm.vector.reduce.fadd.v16f32(float 0.0, <16 x float> {total})")
        if self.kernel.cache_dtype == "int8":
            score = self.emit(f"fmul float {score}, {self._scale('key_scales', slot)}")
        at = self.emit(f"getelementptr float, ptr %scores, i64 {place}")
        self.do(f"store float {score}, ptr {at}, align 4")

    def _softmax(self) -> None:
        self.do("%tail.a = add i64 %length, 15")
        self.do("%num.vectors = lshr i64 %tail.a, 4")
        self.do(f"store <16 x float> {self._constant(-1e30)}, ptr %max.slot")
        self.do("store <16 x float> zeroinitializer, ptr %sum.slot")

        def top() -> None:
            scores = self.emit(f"load <16 x float>, ptr {self._score_address('%top')}, align 4")
            best = self.emit("load <16 x float>, ptr %max.slot")
            best = self.emit(f"call nnan <16 x float> @llvm.maxnum.v16f32(<16 x float> {scores}, <16 x float> {best})")
            self.do(f"store <16 x float> {best}, ptr %max.slot")

        self.loop("top", "0", "%num.vectors", top)
        best = self.emit("load <16 x float>, ptr %max.slot")
        best = self.emit(f"call nnan float @llvm.vector.reduce.fmax.v16f32(<16 x float> {best})")
        best = self.splat("float", best)

        def exp() -> None:
            address = self._score_address("%exp")
            scores = self.emit(f"load <16 x float>, ptr {address}, align 4")
            weights = self._exp(self.emit(f"fsub <16 x float> {scores}, {best}"))
            self.do(f"store <16 x float> {weights}, ptr {address}, align 4")
            total = self.emit("load <16 x float>, ptr %sum.slot")
            self.do(f"store <16 x float> {self.emit(f'fadd <16 x float> {total}, {weights}')}, ptr %sum.slot")

        self.loop("exp", "0", "%num.vectors", exp)

    def _exp(self, x: str) -> str:
        """exp(x) of x <= 0, as 2 ** n * 2 ** f."""
        t = self.emit(f"fmul <16 x float> {x}, {self._constant(1 / math.log(2))}")
        t = self.emit(f"call <16 x float> @llvm.maxnum.v16f32(<16 x float> {t}, <16 x float> {self._constant(-126.0)})")
        n = self.emit(f"call <16 x float> @llvm.nearbyint.v16f32(<16 x float> {t})")
        f = self.emit(f"fsub <16 x float> {t}, {n}")
        value = self._constant(_COEFFICIENTS[-1])
        for coefficient in reversed(_COEFFICIENTS[:-1]):
            value = self.fma(value, f, self._constant(coefficient))
        power = self.emit(f"fptosi <16 x float> {n} to <16 x i32>")
        power = self.emit(f"shl <16 x i32> {power}, {everywhere('i32 23')}")
        bits = self.emit(f"bitcast <16 x float> {value} to <16 x i32>")
        return self.emit(f"bitcast <16 x i32> {self.emit(f'add <16 x i32> {bits}, {power}')} to <16 x float>")

    def _add_value(self, slot: str, place: str) -> None:
        at = self.emit(f"getelementptr float, ptr %scores, i64 {place}")
        weight = self.emit(f"load float, ptr {at}, align 4")
        if self.kernel.cache_dtype == "int8":
            weight = self.emit(f"fmul float {weight}, {self._scale('value_scales', slot)}")
        weights = self.splat("float", weight)
        for v in self.vectors:
            total = self.emit(f"load <16 x float>, ptr %acc.{v}")
            self.do(f"store <16 x float> {self.fma(weights, self._load('values', slot, v), total)}, ptr %acc.{v}")

    def _load(self, name: str, slot: str, v: int) -> str:
        size, kind = _KINDS[self.kernel.cache_dtype]
        at = self.offset(self.emit(f"mul i64 {slot}, {self.kernel.head_dim}"), v * LANES)
        address = self.emit(f"getelementptr {kind}, ptr %{name}, i64 {at}")
        raw = self.emit(f"load <16 x {kind}>, ptr {address}, align {size}")
        if self.kernel.cache_dtype == "float32":
            return raw
        if self.kernel.cache_dtype == "int8":
            return self.emit(f"sitofp <16 x i8> {raw} to <16 x float>")
        wide = self.emit(f"zext <16 x i16> {raw} to <16 x i32>")
        wide = self.emit(f"shl <16 x i32> {wide}, {everywhere('i32 16')}")
        return self.emit(f"bitcast <16 x i32> {wide} to <16 x float>")

    def _scale(self, name: str, slot: str) -> str:
        address = self.emit(f"getelementptr float, ptr %{name}, i64 {slot}")
        return self.emit(f"load float, ptr {address}, align 4")

    def _score_address(self, index: str) -> str:
        return self.emit(f"getelementptr <16 x float>, ptr %scores, i64 {index}")

    @staticmethod
    def _constant(value: float) -> str:
        return everywhere(f"float {_float_literal(value)}")


def _float_literal(value: float) -> str:
    """A float32 as LLVM writes it: the bits of the double that equals it."""
    rounded = struct.unpack("<f", struct.pack("<f", value))[0]
    return f"0x{struct.unpack('<Q', struct.pack('<d', rounded))[0]:016X}"
