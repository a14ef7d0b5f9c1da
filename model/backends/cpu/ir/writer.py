"""Writes one function in LLVM's language, line by line.

Values get numbers; variables are stack slots, which LLVM moves into registers. It knows nothing of what is computed.
All sums have an order of their own that the text spells out: LLVM may not choose one, or a row's result would depend on
how its kernel was compiled.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence

LANES = 16  # numbers in a vector: 64 bytes of float32

# The functions that kernels call; those for one processor are not called on others.
DECLARATIONS = """
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
declare <16 x double> @llvm.fma.v16f64(<16 x double>, <16 x double>, <16 x double>)
declare <16 x float> @llvm.roundeven.v16f32(<16 x float>)
declare <16 x double> @llvm.roundeven.v16f64(<16 x double>)
declare <16 x float> @llvm.fabs.v16f32(<16 x float>)
declare float @llvm.sqrt.f32(float)
declare i64 @llvm.umin.i64(i64, i64)
declare i64 @llvm.smax.i64(i64, i64)
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
declare <16 x float> @llvm.masked.gather.v16f32.v16p0(<16 x ptr>, i32, <16 x i1>, <16 x float>)
declare <16 x float> @llvm.masked.load.v16f32.p0(ptr, i32, <16 x i1>, <16 x float>)
declare <16 x i16> @llvm.masked.load.v16i16.p0(ptr, i32, <16 x i1>, <16 x i16>)
declare void @llvm.masked.store.v16f32.p0(<16 x float>, ptr, i32, <16 x i1>)
declare void @llvm.masked.store.v16i16.p0(<16 x i16>, ptr, i32, <16 x i1>)
declare void @llvm.masked.store.v16i8.p0(<16 x i8>, ptr, i32, <16 x i1>)
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
declare <16 x i32> @llvm.x86.avx512.vpdpwssd.512(<16 x i32>, <32 x i16>, <32 x i16>)
declare <32 x i16> @llvm.x86.avx512.permvar.hi.512(<32 x i16>, <32 x i16>)
declare <16 x float> @llvm.x86.avx512.permvar.sf.512(<16 x float>, <16 x i32>)
declare i32 @omp_get_thread_num()
declare i32 @omp_get_num_threads()
declare void @GOMP_barrier()
"""


class IRWriter:
    """One function; whatever returns a string returns the name of a value, or a constant, to be used in later lines."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._count = 0

    def emit(self, text: str) -> str:
        """Writes an instruction that makes a value."""
        self._count += 1
        self._lines.append(f"  %t{self._count} = {text}")
        return f"%t{self._count}"

    def do(self, text: str) -> None:
        """Writes an instruction as it is."""
        self._lines.append(f"  {text}")

    def label(self, name: str) -> None:
        """Begins a basic block."""
        self._lines.append(f"{name}:")

    def begin(self, signature: str, arguments: Sequence[str], num_addresses: int, loops: Sequence[str]) -> None:
        """Begins a function, perhaps one whose `%arguments` is an array of 64-bit words.

        Args:
            signature: the function's name and parameters.
            arguments: a name for each word; `%name` is its value from here on.
            num_addresses: how many of them, the first ones, are addresses.
            loops: all names that `loop` will be called with.
        """
        self._lines.append(f"define void @{signature} {{")
        self.label("entry")
        for i, name in enumerate(arguments):
            self.do(f"%{name}.at = getelementptr i64, ptr %arguments, i64 {i}")
            self.do(f"%{name} = load {'ptr' if i < num_addresses else 'i64'}, ptr %{name}.at")
        for name in loops:
            self.do(f"%{name}.slot = alloca i64")

    def end(self) -> str:
        """Ends the function and returns its text."""
        self.do("ret void")
        return "\n".join([*self._lines, "}\n"])

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

    def call_by_height(self, name: str, height: str, most: int, arguments: str) -> None:
        """Calls the function `name1` to `name<most>` for a number of rows."""
        cases = " ".join(f"i64 {m}, label %{name}.{m}" for m in range(1, most))
        self.do(f"switch i64 {height}, label %{name}.{most} [ {cases} ]")
        for m in range(1, most + 1):
            self.label(f"{name}.{m}")
            self.do(f"call void @{name}{m}({arguments})")
            self.do(f"br label %{name}.done")
        self.label(f"{name}.done")

    def share(self, total: str) -> tuple[str, str]:
        """The calling thread's part of `total` items: first and end."""
        thread, threads = (
            self.emit(f"zext i32 {self.emit(f'call i32 @omp_get_{name}()')} to i64")
            for name in ("thread_num", "num_threads")
        )
        first = self.emit(f"udiv i64 {self.times(total, thread)}, {threads}")
        following = self.times(total, self.plus(thread, 1))
        return first, self.emit(f"udiv i64 {following}, {threads}")

    def plus(self, a: str, b: str | int) -> str:
        """The sum of two 64-bit integers."""
        return a if b == 0 else self.emit(f"add i64 {a}, {b}")

    def times(self, a: str, b: str | int) -> str:
        """The product of two 64-bit integers."""
        return self.emit(f"mul i64 {a}, {b}")

    def address(self, kind: str, base: str, index: str | int) -> str:
        """The address of `base[index]`, of elements of LLVM's type `kind`."""
        return self.emit(f"getelementptr {kind}, ptr {base}, i64 {index}")

    def number(self, kind: str, base: str, index: str | int) -> str:
        """`base[index]`."""
        address = self.address(kind, base, index)
        return self.emit(f"load {kind}, ptr {address}{'' if kind in ('ptr', 'i64') else ', align 4'}")

    def vector(self, base: str, index: str | int, kind: str = "float") -> str:
        """16 elements from `base[index]` on."""
        return self.emit(f"load <16 x {kind}>, ptr {self.address(kind, base, index)}, align 4")

    def put(self, value: str, base: str, index: str | int, kind: str = "float") -> None:
        """Writes 16 elements from `base[index]` on."""
        self.do(f"store <16 x {kind}> {value}, ptr {self.address(kind, base, index)}, align 4")

    def put_number(self, value: str, base: str, index: str | int) -> None:
        """Writes a float32 to `base[index]`."""
        self.do(f"store float {value}, ptr {self.address('float', base, index)}, align 4")

    def read(self, variable: str, kind: str = "float") -> str:
        """The 16 elements of a variable."""
        return self.emit(f"load <16 x {kind}>, ptr {variable}")

    def write(self, value: str, variable: str, kind: str = "float") -> None:
        """Gives a variable 16 elements."""
        self.do(f"store <16 x {kind}> {value}, ptr {variable}")

    def add(self, a: str, b: str) -> str:
        """The sum of two float vectors."""
        return self.emit(f"fadd <16 x float> {a}, {b}")

    def mul(self, a: str, b: str) -> str:
        """The product of two float vectors."""
        return self.emit(f"fmul <16 x float> {a}, {b}")

    def fma(self, a: str, b: str, c: str) -> str:
        """`a * b + c` of float vectors, rounded once."""
        return self.emit(f"call <16 x float> @llvm.fma.v16f32(<16 x float> {a}, <16 x float> {b}, <16 x float> {c})")

    def dot_bf16(self, total: str, a: str, b: str) -> str:
        """The total plus, lane by lane, two products: of the pairs of bfloat16 that words of a and b hold."""
        pairs = (self.emit(f"bitcast <16 x i32> {each} to <32 x bfloat>") for each in (a, b))
        arguments = ", ".join([f"<16 x float> {total}", *(f"<32 x bfloat> {each}" for each in pairs)])
        return self.emit(f"call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512({arguments})")

    def bitcast(self, value: str, old: str, new: str) -> str:
        """The same 64 bytes as elements of another type, such as "16 x i32"."""
        return self.emit(f"bitcast <{old}> {value} to <{new}>")

    def half_of_words(self, words: str, half: int) -> str:
        """The first or second of each pair of bfloat16 that 16 words hold, as float32."""
        kept = (
            self.emit(f"and <16 x i32> {words}, {ints(-65536)}")
            if half
            else self.emit(f"shl <16 x i32> {words}, {ints(16)}")
        )
        return self.bitcast(kept, "16 x i32", "16 x float")

    def splat(self, kind: str, value: str) -> str:
        """A vector of one number in all lanes."""
        one = self.emit(f"insertelement <16 x {kind}> poison, {kind} {value}, i32 0")
        return self.emit(f"shufflevector <16 x {kind}> {one}, <16 x {kind}> poison, <16 x i32> zeroinitializer")


def lanes(numbers: Iterable[int], kind: str = "i32") -> str:
    """A constant vector of integers."""
    return "<" + ", ".join(f"{kind} {number}" for number in numbers) + ">"


def everywhere(element: str) -> str:
    """A constant vector of one element, such as "i32 4", in all lanes."""
    return "<" + ", ".join([element] * LANES) + ">"


def ints(value: int) -> str:
    """A constant vector of one 32-bit integer."""
    return everywhere(f"i32 {value}")


def floats(value: float) -> str:
    """A constant vector of one float32."""
    return everywhere(f"float {float_literal(value)}")


def float_literal(value: float) -> str:
    """A float32 as LLVM writes it: the bits of the double that equals it."""
    return double_literal(struct.unpack("<f", struct.pack("<f", value))[0])


def double_literal(value: float) -> str:
    """A float64 as LLVM writes it."""
    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"
