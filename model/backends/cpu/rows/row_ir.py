"""The text of the kernels for what a layer does between its products, row by row.

Each replaces several small torch operations, which took 10 ms of a step of a 1.8B model; and each computes a row in one
way whatever the number of rows. torch's do not: the last few numbers of a thread's share are rounded otherwise.
"""

from __future__ import annotations

from model.backends.cpu.ir.numbers import NumberWriter
from model.backends.cpu.ir.writer import DECLARATIONS

# Where each argument stands in the array of 64-bit words that a function gets; addresses come first. Of `epsilon` a
# word has the bits of the float32.
_NORM = ("delta", "residual", "weight", "out", "epsilon", "rows", "width")
_SILU = ("gate", "up", "out", "rows", "width", "gate_stride", "up_stride")
_SUMS = ("x", "out", "groups", "size")
FUNCTIONS = ("add_norm", "norm", "silu_mul", "sums")


def module_text(dtype: str, *, has_bf16: bool) -> str:
    """A module with `FUNCTIONS`, each of which takes the address of its arguments and runs on every thread.

    Args:
        dtype: dtype of activations, "float32" or "bfloat16".
        has_bf16: see `NumberWriter`.
    """

    def writer() -> _Writer:
        return _Writer(dtype, has_bf16)

    parts = (writer().norm("add_norm"), writer().norm("norm"), writer().silu_mul_of_rows(), writer().group_sums())
    return "\n".join((DECLARATIONS, *parts))


class _Writer(NumberWriter):
    def __init__(self, dtype: str, has_bf16: bool) -> None:
        super().__init__(has_bf16=has_bf16)
        self.dtype = dtype

    def norm(self, name: str) -> str:
        """`Backend.rms_norm` or `Backend.add_rms_norm`."""
        self.begin(f"{name}(ptr %arguments)", _NORM, 4, ("row", "square", "scale"))
        self.do("%sum = alloca <16 x float>")
        epsilon = self.emit(f"bitcast i32 {self.emit('trunc i64 %epsilon to i32')} to float")
        width = self.emit("uitofp i64 %width to float")

        def row() -> None:
            first = self.times("%row", "%width")
            self.write("zeroinitializer", "%sum")

            def square(at: str, count: str | None) -> None:
                at = self.plus(first, at)
                value = self.load("float32", "%residual", at, count)
                if name == "add_norm":
                    value = self.add(value, self.load(self.dtype, "%delta", at, count))
                    self.store("float32", value, "%residual", at, count)
                self.write(self.fma(value, value, self.read("%sum")), "%sum")

            self.over("square", "%width", square)
            mean = self.emit(f"fdiv float {self.total(self.read('%sum'))}, {width}")
            root = self.emit(f"call float @llvm.sqrt.f32(float {self.emit(f'fadd float {mean}, {epsilon}')})")
            factor = self.splat("float", self.emit(f"fdiv float 1.0, {root}"))

            def scale(at: str, count: str | None) -> None:
                weight = self.load(self.dtype, "%weight", at, count)
                at = self.plus(first, at)
                value = self.rounded(self.dtype, self.mul(self.load("float32", "%residual", at, count), factor))
                self.store(self.dtype, self.mul(value, weight), "%out", at, count)

            self.over("scale", "%width", scale)

        self.loop("row", *self.share("%rows"), row)
        return self.end()

    def silu_mul_of_rows(self) -> str:
        """`Backend.silu_mul`."""
        self.begin("silu_mul(ptr %arguments)", _SILU, 3, ("row", "column"))

        def row() -> None:
            gates, ups = (self.times("%row", f"%{name}_stride") for name in ("gate", "up"))
            outs = self.times("%row", "%width")

            def column(at: str, count: str | None) -> None:
                gate = self.load(self.dtype, "%gate", self.plus(gates, at), count)
                up = self.load(self.dtype, "%up", self.plus(ups, at), count)
                self.store(self.dtype, self.silu_mul(gate, up), "%out", self.plus(outs, at), count)

            self.over("column", "%width", column)

        self.loop("row", *self.share("%rows"), row)
        return self.end()

    def group_sums(self) -> str:
        """Sums of each group of a row's inputs, for weights whose zeros are not in the middle."""
        self.begin("sums(ptr %arguments)", _SUMS, 2, ("group", "add"))
        self.do("%sum = alloca <16 x float>")

        def group() -> None:
            first = self.times("%group", "%size")
            self.write("zeroinitializer", "%sum")

            def x(at: str, count: str | None) -> None:
                value = self.load(self.dtype, "%x", self.plus(first, at), count)
                self.write(self.add(self.read("%sum"), value), "%sum")

            self.over("add", "%size", x)
            total = self.total(self.read("%sum"))
            self.do(f"store float {total}, ptr {self.address('float', '%out', '%group')}")

        self.loop("group", *self.share("%groups"), group)
        return self.end()
