"""Reads and writes vectors of numbers of any type, the last ones of a row included, and computes with them."""

from __future__ import annotations

import math
from collections.abc import Callable

from model.backends.cpu.ir.writer import LANES, IRWriter, floats, ints, lanes

# Bytes of each dtype, and LLVM's type for its bits.
KINDS = {"float32": (4, "float"), "bfloat16": (2, "i16"), "int8": (1, "i8")}

# 2 ** f for |f| <= 1/2: the Taylor series of exp(f ln 2), off by 2e-8 at most.
_COEFFICIENTS = [math.log(2) ** i / math.factorial(i) for i in range(8)]


class NumberWriter(IRWriter):
    """Computes in float32, whatever the type in memory.

    Args:
        has_bf16: whether the processor rounds to bfloat16 by itself.
    """

    def __init__(self, *, has_bf16: bool) -> None:
        super().__init__()
        self._has_bf16 = has_bf16

    def over(self, name: str, count: str, body: Callable[[str, str | None], None]) -> None:
        """Runs the body for every 16 of `count` numbers.

        Args:
            name: a name for the loop.
            count: any number.
            body: writes code, twice; gets the place of the first number, and how many there are where fewer than 16.
        """
        whole = self.emit(f"lshr i64 {count}, 4")
        self.loop(name, "0", whole, lambda: body(self.emit(f"shl i64 %{name}, 4"), None))
        self.do(f"%{name}.rest = and i64 {count}, 15")
        self.do(f"%{name}.has.rest = icmp ne i64 %{name}.rest, 0")
        self.do(f"br i1 %{name}.has.rest, label %{name}.rest.body, label %{name}.rest.end")
        self.label(f"{name}.rest.body")
        body(self.emit(f"shl i64 {whole}, 4"), f"%{name}.rest")
        self.do(f"br label %{name}.rest.end")
        self.label(f"{name}.rest.end")

    def load(self, dtype: str, base: str, at: str, count: str | None = None) -> str:
        """16 numbers, float32 or bfloat16, as float32; or `count` of them and then zeros."""
        size, kind = KINDS[dtype]
        address = self.address(kind, base, at)
        if count is None:
            raw = self.emit(f"load <16 x {kind}>, ptr {address}, align {size}")
        else:
            raw = self.emit(
                f"call <16 x {kind}> @llvm.masked.load.v16{_suffix(kind)}.p0(ptr {address}, i32 {size}, "
                f"<16 x i1> {self._first_lanes(count)}, <16 x {kind}> zeroinitializer)"
            )
        return raw if dtype == "float32" else self._widened(raw)

    def store(self, dtype: str, value: str, base: str, at: str, count: str | None = None) -> None:
        """Writes 16 float32 numbers, or `count` of them, as another type; integers must fit."""
        size, kind = KINDS[dtype]
        if dtype == "bfloat16":
            value = self.to_bf16(value)
        elif dtype == "int8":
            value = self.emit(f"fptosi <16 x float> {value} to <16 x i32>")
            value = self.emit(f"trunc <16 x i32> {value} to <16 x i8>")
        self.store_raw(value, kind, size, self.address(kind, base, at), count)

    def store_raw(self, value: str, kind: str, size: int, address: str, count: str | None = None) -> None:
        """Writes 16 elements of LLVM's type `kind`, or `count` of them, of `size` bytes each."""
        if count is None:
            self.do(f"store <16 x {kind}> {value}, ptr {address}, align {size}")
        else:
            self.do(
                f"call void @llvm.masked.store.v16{_suffix(kind)}.p0(<16 x {kind}> {value}, ptr {address}, i32 {size}, "
                f"<16 x i1> {self._first_lanes(count)})"
            )

    def _first_lanes(self, count: str) -> str:
        """Which of 16 lanes are among the first `count`."""
        limit = self.splat("i32", self.emit(f"trunc i64 {count} to i32"))
        return self.emit(f"icmp ult <16 x i32> {lanes(range(LANES))}, {limit}")

    def to_bf16(self, value: str) -> str:
        """The bits of 16 float32 numbers rounded to bfloat16."""
        if self._has_bf16:
            rounded = self.emit(f"fptrunc <16 x float> {value} to <16 x bfloat>")
            return self.bitcast(rounded, "16 x bfloat", "16 x i16")
        bits = self.bitcast(value, "16 x float", "16 x i32")
        odd = self.emit(f"and <16 x i32> {self.emit(f'lshr <16 x i32> {bits}, {ints(16)}')}, {ints(1)}")
        rounded = self.emit(f"add <16 x i32> {self.emit(f'add <16 x i32> {bits}, {ints(0x7FFF)}')}, {odd}")
        is_nan = self.emit(f"fcmp uno <16 x float> {value}, {value}")
        quiet = self.emit(f"or <16 x i32> {bits}, {ints(0x400000)}")
        bits = self.emit(f"select <16 x i1> {is_nan}, <16 x i32> {quiet}, <16 x i32> {rounded}")
        return self.emit(f"trunc <16 x i32> {self.emit(f'lshr <16 x i32> {bits}, {ints(16)}')} to <16 x i16>")

    def rounded(self, dtype: str, value: str) -> str:
        """16 float32 numbers, rounded as `dtype` would."""
        return value if dtype == "float32" else self._widened(self.to_bf16(value))

    def _widened(self, raw: str) -> str:
        """The bits of 16 bfloat16 numbers as float32."""
        return self.half_of_words(self.emit(f"zext <16 x i16> {raw} to <16 x i32>"), 0)

    def larger(self, a: str, b: str) -> str:
        """Lane by lane the larger of two, b where they cannot be compared."""
        is_larger = self.emit(f"fcmp ogt <16 x float> {a}, {b}")
        return self.emit(f"select <16 x i1> {is_larger}, <16 x float> {a}, <16 x float> {b}")

    def total(self, value: str) -> str:
        """The sum of a vector's lanes: eight and eight, four and four, two and two."""
        return self._fold(value, self.add)

    def largest(self, value: str) -> str:
        """The largest of a vector's lanes."""
        return self._fold(value, self.larger)

    def _fold(self, value: str, combine: Callable[[str, str], str]) -> str:
        for half in (8, 4, 2, 1):
            order = lanes(i ^ half for i in range(LANES))
            other = self.emit(f"shufflevector <16 x float> {value}, <16 x float> poison, <16 x i32> {order}")
            value = combine(value, other)
        return self.emit(f"extractelement <16 x float> {value}, i32 0")

    def silu_mul(self, gate: str, up: str) -> str:
        """`up * silu(gate)` of float vectors."""
        power = self.exp2(self.mul(gate, floats(-1.0 / math.log(2))))
        return self.mul(self.emit(f"fdiv <16 x float> {gate}, {self.add(power, floats(1.0))}"), up)

    def exp2(self, t: str) -> str:
        """2 ** t of numbers from -126 to 126; others are taken for the nearer of the two."""
        t = self.larger(t, floats(-126.0))
        is_less = self.emit(f"fcmp olt <16 x float> {t}, {floats(126.0)}")
        t = self.emit(f"select <16 x i1> {is_less}, <16 x float> {t}, <16 x float> {floats(126.0)}")
        n = self.emit(f"call <16 x float> @llvm.roundeven.v16f32(<16 x float> {t})")
        f = self.emit(f"fsub <16 x float> {t}, {n}")
        value = floats(_COEFFICIENTS[-1])
        for coefficient in reversed(_COEFFICIENTS[:-1]):
            value = self.fma(value, f, floats(coefficient))
        power = self.emit(f"shl <16 x i32> {self.emit(f'fptosi <16 x float> {n} to <16 x i32>')}, {ints(23)}")
        bits = self.bitcast(value, "16 x float", "16 x i32")
        return self.bitcast(self.emit(f"add <16 x i32> {bits}, {power}"), "16 x i32", "16 x float")


def _suffix(kind: str) -> str:
    """How the names of LLVM's functions end for a type of elements."""
    return "f32" if kind == "float" else kind
