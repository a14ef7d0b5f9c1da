"""The text of the kernels for what a layer does between its products, row by row.

Each replaces several small torch operations, which took 10 ms of a step of a 1.8B model; and each computes a row in one
way whatever the number of rows, which torch's do not: the last few numbers of what a thread gets are rounded otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from model.backends.cpu.ir.writer import NUMBER_DECLARATIONS, NumberWriter

# Where each argument stands in the array of 64-bit words that a function gets; addresses come first.
NORM = ("delta", "residual", "weight", "out", "epsilon", "rows", "width")
SILU = ("gate", "up", "out", "rows", "width", "gate_stride", "up_stride")
SUMS = ("x", "out", "groups", "size")
_NUM_ADDRESSES = {"add_norm": 5, "norm": 5, "silu_mul": 3, "sums": 2}
_DECLARATIONS = """
declare float @llvm.sqrt.f32(float)
"""


@dataclass(frozen=True)
class RowKernels:
    """The functions for one type of activations.

    Attributes:
        dtype: "float32" or "bfloat16".
        has_bf16: see `NumberWriter`.
    """

    dtype: str
    has_bf16: bool

    @cached_property
    def text(self) -> str:
        """A module with the functions of `FUNCTIONS`; each takes the address of its arguments."""
        parts = [NUMBER_DECLARATIONS, _DECLARATIONS]
        parts += [_Writer(self).write(name) for name in FUNCTIONS]
        return "\n".join(parts)


FUNCTIONS = {
    "add_norm": NORM,
    "norm": NORM,
    "silu_mul": SILU,
    "sums": SUMS,
}


class _Writer(NumberWriter):
    def __init__(self, kernels: RowKernels) -> None:
        super().__init__(has_bf16=kernels.has_bf16)
        self.kernels = kernels

    def write(self, name: str) -> str:
        """A function's text."""
        writers: dict[str, tuple[Callable[[], None], tuple[str, ...]]] = {
            "add_norm": (lambda: self._norm(adds=True), ("row", "square", "scale")),
            "norm": (lambda: self._norm(adds=False), ("row", "square", "scale")),
            "silu_mul": (self._silu_mul, ("row", "column")),
            "sums": (self._sums, ("group", "add")),
        }
        body, loops = writers[name]
        self.begin(f"{name}(ptr %arguments)", FUNCTIONS[name], _NUM_ADDRESSES[name], loops)
        self.do("%sum = alloca <16 x float>")
        body()
        self.end()
        return self.text

    def _norm(self, *, adds: bool) -> None:
        dtype = self.kernels.dtype
        epsilon = self.emit("load float, ptr %epsilon")
        width = self.emit("uitofp i64 %width to float")

        def row() -> None:
            first = self.emit("mul i64 %row, %width")
            self.do("store <16 x float> zeroinitializer, ptr %sum")

            def square(at: str, count: str | None) -> None:
                at = self.emit(f"add i64 {first}, {at}")
                value = self.load("float32", "%residual", at, count)
                if adds:
                    value = self.add(value, self.load(dtype, "%delta", at, count))
                    self.store("float32", value, "%residual", at, count)
                total = self.emit("load <16 x float>, ptr %sum")
                self.do(f"store <16 x float> {self.fma(value, value, total)}, ptr %sum")

            self.over("square", "%width", square)
            mean = self.emit(f"fdiv float {self.total(self.emit('load <16 x float>, ptr %sum'))}, {width}")
            root = self.emit(f"call float @llvm.sqrt.f32(float {self.emit(f'fadd float {mean}, {epsilon}')})")
            factor = self.splat("float", self.emit(f"fdiv float 1.0, {root}"))

            def scale(at: str, count: str | None) -> None:
                weight = self.load(dtype, "%weight", at, count)
                at = self.emit(f"add i64 {first}, {at}")
                value = self.rounded(dtype, self.mul(self.load("float32", "%residual", at, count), factor))
                self.store(dtype, self.mul(value, weight), "%out", at, count)

            self.over("scale", "%width", scale)

        self.loop("row", *self.share("%rows"), row)

    def _silu_mul(self) -> None:
        dtype = self.kernels.dtype

        def row() -> None:
            gates, ups = (self.emit(f"mul i64 %row, %{name}_stride") for name in ("gate", "up"))
            outs = self.emit("mul i64 %row, %width")

            def column(at: str, count: str | None) -> None:
                x = self.load(dtype, "%gate", self.emit(f"add i64 {gates}, {at}"), count)
                up = self.load(dtype, "%up", self.emit(f"add i64 {ups}, {at}"), count)
                self.store(dtype, self.silu_mul(x, up), "%out", self.emit(f"add i64 {outs}, {at}"), count)

            self.over("column", "%width", column)

        self.loop("row", *self.share("%rows"), row)

    def _sums(self) -> None:
        """Of each group of a row's inputs, for weights whose zeros are not in the middle."""

        def group() -> None:
            first = self.emit("mul i64 %group, %size")
            self.do("store <16 x float> zeroinitializer, ptr %sum")

            def x(at: str, count: str | None) -> None:
                value = self.load(self.kernels.dtype, "%x", self.emit(f"add i64 {first}, {at}"), count)
                total = self.emit("load <16 x float>, ptr %sum")
                self.do(f"store <16 x float> {self.add(total, value)}, ptr %sum")

            self.over("add", "%size", x)
            total = self.total(self.emit("load <16 x float>, ptr %sum"))
            self.do(f"store float {total}, ptr {self.emit('getelementptr float, ptr %out, i64 %group')}")

        self.loop("group", *self.share("%groups"), group)
