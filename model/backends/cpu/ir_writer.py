"""Writing functions in LLVM's language: what the kernels' texts have in common.

Values get numbers; variables are stack slots, which LLVM moves into registers. It knows nothing of what is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

LANES = 16  # numbers in a vector: 64 bytes of float32

FMA_DECLARATION = "declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)"


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


def everywhere(element: str) -> str:
    """A constant vector of one element, such as "i32 4", in all lanes."""
    return "<" + ", ".join([element] * LANES) + ">"
