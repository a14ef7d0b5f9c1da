"""The text of what runs two products and multiplies the one's outputs by silu of the other's, a share a thread.

The products are those of product_ir.py, which differ by their arguments alone; what they give is rounded as if it had
been kept, so the result has the bits of two products and a multiplication after them.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.backends.cpu.ir.writer import LANES, NUMBER_DECLARATIONS, NumberWriter
from model.backends.cpu.linears.product_ir import ARGUMENTS as PRODUCT_ARGUMENTS
from model.backends.cpu.linears.product_ir import BLOCK

# Where each argument stands in the array of 64-bit words: two products' arguments, the result, and its rows.
ARGUMENTS = ("gate", "up", "inner", "height")
GATED = "gated"
_NUM_ADDRESSES = 3


@dataclass(frozen=True)
class GatedKernel:
    """The function for one type of activations.

    Attributes:
        dtype: "float32" or "bfloat16".
        has_bf16: see `NumberWriter`.
    """

    dtype: str
    has_bf16: bool

    @property
    def text(self) -> str:
        """A module with the function `gated`, which takes the arguments' address and runs on every thread."""
        return NUMBER_DECLARATIONS + _Writer(self).write()


class _Writer(NumberWriter):
    def __init__(self, kernel: GatedKernel) -> None:
        super().__init__(has_bf16=kernel.has_bf16)
        self.dtype = kernel.dtype

    def write(self) -> str:
        """The function's text."""
        loops = ("gate.block", "block", "row", "many.gate", "few.gate", "many.up", "few.up")
        self.begin(f"{GATED}(ptr %arguments)", ARGUMENTS, _NUM_ADDRESSES, loops)
        for product in ("gate", "up"):
            for name in ("rows", "many", "few", "n", "blocks"):
                self._take(product, name, "i64")
            for name in ("many_kernel", "few_kernel", "out"):
                self._take(product, name, "ptr")
            self.do(f"%{product}.less = sub i64 %{product}.rows, 1")
            self.do(f"%{product}.first.few = mul i64 %{product}.many, %{product}.rows")
        # One after the other: weights are read as fast as memory allows where they follow each other.
        first, last = self.share("%gate.blocks")
        self.loop("gate.block", first, last, lambda: self._runs("gate", "%gate.block"))
        self.loop("block", first, last, self._block)
        self.end()
        return self.text

    def _take(self, product: str, name: str, kind: str) -> None:
        at = self.emit(f"getelementptr i64, ptr %{product}, i64 {PRODUCT_ARGUMENTS.index(name)}")
        self.do(f"%{product}.{name} = load {kind}, ptr {at}")

    def _block(self) -> None:
        """64 outputs of the second product for all rows, and the result of both."""
        self._runs("up", "%block")
        column = self.emit(f"mul i64 %block, {BLOCK}")

        def row() -> None:
            first = self.emit(f"add i64 {self.emit('mul i64 %row, %gate.n')}, {column}")
            for place in range(0, BLOCK, LANES):
                at = self.offset(first, place)
                gate, up = (self.load(self.dtype, f"%{product}.out", at) for product in ("gate", "up"))
                self.store(self.dtype, self.silu_mul(gate, up), "%inner", at)

        self.loop("row", "0", "%height", row)

    def _runs(self, product: str, block: str) -> None:
        """64 outputs of a product for all rows."""
        span = f"i64 {block}, i64 {self.offset(block, 1)}"

        def many() -> None:
            row = self.emit(f"mul i64 %many.{product}, %{product}.rows")
            self.do(f"call void %{product}.many_kernel(ptr %{product}, {span}, i64 {row})")

        def few() -> None:
            row = self.emit(f"mul i64 %few.{product}, %{product}.less")
            row = self.emit(f"add i64 {row}, %{product}.first.few")
            self.do(f"call void %{product}.few_kernel(ptr %{product}, {span}, i64 {row})")

        self.loop(f"many.{product}", "0", f"%{product}.many", many)
        self.loop(f"few.{product}", "0", f"%{product}.few", few)
