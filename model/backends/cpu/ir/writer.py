"""Writing functions in LLVM's language: what the kernels' texts have in common.

Values get numbers; variables are stack slots, which LLVM moves into registers. It knows nothing of what is computed.
All sums have an order of their own that the text spells out: LLVM may not choose one, or a row's result would depend on
how its kernel was compiled.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence

LANES = 16  # numbers in a vector: 64 bytes of float32

# Of a type of numbers: bytes, and LLVM's type.
KINDS = {"float32": (4, "float"), "bfloat16": (2, "i16"), "int8": (1, "i8")}

FMA_DECLARATION = "declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)"


def _tail_functions(kind: str) -> str:
    return f"""
define internal <16 x {kind}> @tail.load.{kind}(ptr %from, i64 %count) {{
entry:
  %all = alloca <16 x {kind}>
  store <16 x {kind}> zeroinitializer, ptr %all
  br label %test
test:
  %i = phi i64 [ 0, %entry ], [ %next, %body ]
  %more = icmp ult i64 %i, %count
  br i1 %more, label %body, label %end
body:
  %a = getelementptr {kind}, ptr %from, i64 %i
  %b = getelementptr {kind}, ptr %all, i64 %i
  %x = load {kind}, ptr %a, align 1
  store {kind} %x, ptr %b
  %next = add i64 %i, 1
  br label %test
end:
  %result = load <16 x {kind}>, ptr %all
  ret <16 x {kind}> %result
}}
define internal void @tail.store.{kind}(ptr %to, i64 %count, <16 x {kind}> %value) {{
entry:
  %all = alloca <16 x {kind}>
  store <16 x {kind}> %value, ptr %all
  br label %test
test:
  %i = phi i64 [ 0, %entry ], [ %next, %body ]
  %more = icmp ult i64 %i, %count
  br i1 %more, label %body, label %end
body:
  %a = getelementptr {kind}, ptr %all, i64 %i
  %b = getelementptr {kind}, ptr %to, i64 %i
  %x = load {kind}, ptr %a
  store {kind} %x, ptr %b, align 1
  %next = add i64 %i, 1
  br label %test
end:
  ret void
}}
"""


# What `NumberWriter` calls.
NUMBER_DECLARATIONS = (
    FMA_DECLARATION
    + """
declare <16 x float> @llvm.roundeven.v16f32(<16 x float>)
declare <16 x float> @llvm.fabs.v16f32(<16 x float>)
declare i32 @omp_get_thread_num()
declare i32 @omp_get_num_threads()
"""
    + "".join(_tail_functions(kind) for _, kind in KINDS.values())
)
# 2 ** f for |f| <= 1/2: the Taylor series of exp(f ln 2), off by 2e-8 at most.
_COEFFICIENTS = [math.log(2) ** i / math.factorial(i) for i in range(8)]


class IRWriter:
    """One function, line by line."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._count = 0

    @property
    def text(self) -> str:
        """What has been written."""
        return "\n".join(self._lines) + "\n"

    def emit(self, text: str) -> str:
        """Writes an instruction that makes a value, and returns the value's name."""
        self._count += 1
        self._lines.append(f"  %t{self._count} = {text}")
        return f"%t{self._count}"

    def do(self, text: str) -> None:
        """Writes an instruction as it is."""
        self._lines.append(f"  {text}")

    def label(self, name: str) -> None:
        """Begins a block."""
        self._lines.append(f"{name}:")

    def begin(self, signature: str, arguments: Sequence[str], num_addresses: int, loops: Sequence[str]) -> None:
        """Begins a function whose `%arguments` is an array of 64-bit words.

        Args:
            signature: name and parameters.
            arguments: a name for each word; `%name` is its value from here on.
            num_addresses: so many of them, the first ones, are addresses.
            loops: names that `loop` will be called with.
        """
        self._lines.append(f"define void @{signature} {{")
        self.label("entry")
        for i, name in enumerate(arguments):
            self.do(f"%{name}.at = getelementptr i64, ptr %arguments, i64 {i}")
            self.do(f"%{name} = load {'ptr' if i < num_addresses else 'i64'}, ptr %{name}.at")
        for name in loops:
            self.do(f"%{name}.slot = alloca i64")

    def end(self) -> None:
        """Ends the function."""
        self.do("ret void")
        self._lines.append("}")

    def loop(self, name: str, first: str, last: str, body: Callable[[], None]) -> None:
        """Runs the body with `%name` from first up to, but not including, last."""
        self.do(f"store i64 {first}, ptr %{name}.slot")
        self.do(f"br label %{name}.test")
        self.label(f"{name}.test")
        self.do(f"%{name} = load i64, ptr %{name}.slot")
        self.do(f"%{name}.more = icmp ult i64 %{name}, {last}")
        self.do(f"br i1 %{name}.more, label %{name}.body, label %{name}.end")
        self.label(f"{name}.body")
        body()
        self.do(f"%{name}.following = add i64 %{name}, 1")
        self.do(f"store i64 %{name}.following, ptr %{name}.slot")
        self.do(f"br label %{name}.test")
        self.label(f"{name}.end")

    def add(self, a: str, b: str) -> str:
        """The sum of two float vectors."""
        return self.emit(f"fadd <16 x float> {a}, {b}")

    def fma(self, a: str, b: str, c: str) -> str:
        """`a * b + c` of float vectors, rounded once; needs `FMA_DECLARATION`."""
        return self.emit(f"call <16 x float> @llvm.fma.v16f32(<16 x float> {a}, <16 x float> {b}, <16 x float> {c})")

    def splat(self, kind: str, value: str) -> str:
        """A vector of one number in all lanes."""
        one = self.emit(f"insertelement <16 x {kind}> poison, {kind} {value}, i32 0")
        return self.emit(f"shufflevector <16 x {kind}> {one}, <16 x {kind}> poison, <16 x i32> zeroinitializer")

    def offset(self, base: str, constant: int) -> str:
        """Base + constant, of 64-bit integers."""
        return self.emit(f"add i64 {base}, {constant}") if constant else base


class NumberWriter(IRWriter):
    """Also reads and writes vectors of numbers, part of a vector included, and computes with them.

    Args:
        has_bf16: whether the processor rounds to bfloat16 by itself.
    """

    def __init__(self, *, has_bf16: bool) -> None:
        super().__init__()
        self._has_bf16 = has_bf16

    def share(self, total: str) -> tuple[str, str]:
        """The calling thread's part of `total` items: first and end."""
        thread, threads = (
            self.emit(f"zext i32 {self.emit(f'call i32 @omp_get_{name}()')} to i64")
            for name in ("thread_num", "num_threads")
        )
        first = self.emit(f"udiv i64 {self.emit(f'mul i64 {total}, {thread}')}, {threads}")
        following = self.emit(f"mul i64 {total}, {self.emit(f'add i64 {thread}, 1')}")
        return first, self.emit(f"udiv i64 {following}, {threads}")

    def over(self, name: str, count: str, body: Callable[[str, str | None], None]) -> None:
        """Runs the body for every 16 of `count` numbers.

        Args:
            name: of the loop.
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
        """16 numbers as float32, or `count` of them and then zeros; integers stay what they are."""
        size, kind = KINDS[dtype]
        address = self.emit(f"getelementptr {kind}, ptr {base}, i64 {at}")
        if count is None:
            raw = self.emit(f"load <16 x {kind}>, ptr {address}, align {size}")
        else:
            raw = self.emit(f"call <16 x {kind}> @tail.load.{kind}(ptr {address}, i64 {count})")
        if dtype == "float32":
            return raw
        if dtype == "int8":
            return self.emit(f"sitofp <16 x i8> {raw} to <16 x float>")
        wide = self.emit(f"shl <16 x i32> {self.emit(f'zext <16 x i16> {raw} to <16 x i32>')}, {everywhere('i32 16')}")
        return self.emit(f"bitcast <16 x i32> {wide} to <16 x float>")

    def store(self, dtype: str, value: str, base: str, at: str, count: str | None = None) -> None:
        """Writes 16 float32 numbers, or `count` of them, as another type; integers must fit."""
        size, kind = KINDS[dtype]
        if dtype == "bfloat16":
            value = self.to_bf16(value)
        elif dtype == "int8":
            value = self.emit(f"fptosi <16 x float> {value} to <16 x i32>")
            value = self.emit(f"trunc <16 x i32> {value} to <16 x i8>")
        address = self.emit(f"getelementptr {kind}, ptr {base}, i64 {at}")
        if count is None:
            self.do(f"store <16 x {kind}> {value}, ptr {address}, align {size}")
        else:
            self.do(f"call void @tail.store.{kind}(ptr {address}, i64 {count}, <16 x {kind}> {value})")

    def to_bf16(self, value: str) -> str:
        """The bits of 16 float32 numbers rounded to bfloat16."""
        if self._has_bf16:
            rounded = self.emit(f"fptrunc <16 x float> {value} to <16 x bfloat>")
            return self.emit(f"bitcast <16 x bfloat> {rounded} to <16 x i16>")
        bits = self.emit(f"bitcast <16 x float> {value} to <16 x i32>")
        odd = self.emit(f"and <16 x i32> {self.emit(f'lshr <16 x i32> {bits}, {_ints(16)}')}, {_ints(1)}")
        rounded = self.emit(f"add <16 x i32> {self.emit(f'add <16 x i32> {bits}, {_ints(0x7FFF)}')}, {odd}")
        is_nan = self.emit(f"fcmp uno <16 x float> {value}, {value}")
        quiet = self.emit(f"or <16 x i32> {bits}, {_ints(0x400000)}")
        bits = self.emit(f"select <16 x i1> {is_nan}, <16 x i32> {quiet}, <16 x i32> {rounded}")
        return self.emit(f"trunc <16 x i32> {self.emit(f'lshr <16 x i32> {bits}, {_ints(16)}')} to <16 x i16>")

    def rounded(self, dtype: str, value: str) -> str:
        """16 float32 numbers, rounded as `dtype` would."""
        if dtype == "float32":
            return value
        wide = self.emit(f"zext <16 x i16> {self.to_bf16(value)} to <16 x i32>")
        wide = self.emit(f"shl <16 x i32> {wide}, {_ints(16)}")
        return self.emit(f"bitcast <16 x i32> {wide} to <16 x float>")

    def mul(self, a: str, b: str) -> str:
        """The product of two float vectors."""
        return self.emit(f"fmul <16 x float> {a}, {b}")

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
            lanes = ", ".join(f"i32 {i ^ half}" for i in range(LANES))
            other = self.emit(f"shufflevector <16 x float> {value}, <16 x float> poison, <16 x i32> <{lanes}>")
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
        power = self.emit(f"shl <16 x i32> {self.emit(f'fptosi <16 x float> {n} to <16 x i32>')}, {_ints(23)}")
        bits = self.emit(f"bitcast <16 x float> {value} to <16 x i32>")
        return self.emit(f"bitcast <16 x i32> {self.emit(f'add <16 x i32> {bits}, {power}')} to <16 x float>")


def floats(value: float) -> str:
    """A constant vector of one float32."""
    return everywhere(f"float {float_literal(value)}")


def float_literal(value: float) -> str:
    """A float32 as LLVM writes it: the bits of the double that equals it."""
    rounded = struct.unpack("<f", struct.pack("<f", value))[0]
    return double_literal(rounded)


def double_literal(value: float) -> str:
    """A float64 as LLVM writes it."""
    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"


def _ints(value: int) -> str:
    return everywhere(f"i32 {value}")


def everywhere(element: str) -> str:
    """A constant vector of one element, such as "i32 4", in all lanes."""
    return "<" + ", ".join([element] * LANES) + ">"
