"""The text of the function that runs two products and multiplies the one's outputs by silu of the other's.

It calls the kernels of product_ir.py. Their results are rounded as if they had been kept, so the result has the bits of
two products and a multiplication after them.
"""

from __future__ import annotations

from model.backends.cpu.ir.numbers import NumberWriter
from model.backends.cpu.ir.writer import DECLARATIONS, LANES
from model.backends.cpu.linears.product_ir import ARGUMENTS as PRODUCT_ARGUMENTS
from model.backends.cpu.linears.product_ir import BLOCK, multiply_block

# Where each argument stands in the array of 64-bit words: two products' arguments, the result, and its rows.
_ARGUMENTS = ("gate", "up", "inner", "height")
GATED = "gated"


def module_text(dtype: str, *, has_bf16: bool) -> str:
    """A module with the function `gated`, which takes the arguments' address and runs on every thread.

    Args:
        dtype: dtype of both products' results, "float32" or "bfloat16".
        has_bf16: see `NumberWriter`.
    """
    writer = NumberWriter(has_bf16=has_bf16)
    writer.begin(f"{GATED}(ptr %arguments)", _ARGUMENTS, 3, ("gate.block", "block", "row", "gate.run", "up.run"))
    names = {"n": "i64", "blocks": "i64", "out": "ptr"}
    num_outputs, blocks, gates = (writer.number(names[name], "%gate", PRODUCT_ARGUMENTS.index(name)) for name in names)
    ups = writer.number("ptr", "%up", PRODUCT_ARGUMENTS.index("out"))

    def block() -> None:
        """64 outputs of the second product for all rows, and the result of both."""
        multiply_block(writer, "%up", "%block", "up.run")
        column = writer.times("%block", BLOCK)

        def row() -> None:
            first = writer.plus(writer.times("%row", num_outputs), column)
            for place in range(0, BLOCK, LANES):
                at = writer.plus(first, place)
                gate, up = (writer.load(dtype, outputs, at) for outputs in (gates, ups))
                writer.store(dtype, writer.silu_mul(gate, up), "%inner", at)

        writer.loop("row", "0", "%height", row)

    # One product after the other: weights are read as fast as memory allows where they follow each other.
    share = writer.share(blocks)
    writer.loop("gate.block", *share, lambda: multiply_block(writer, "%gate", "%gate.block", "gate.run"))
    writer.loop("block", *share, block)
    return DECLARATIONS + writer.end()
