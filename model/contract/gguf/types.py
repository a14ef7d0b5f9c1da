"""The types of numbers that GGUF files hold: names, sizes of blocks, and how our kernels keep them."""

from __future__ import annotations

from typing import NamedTuple


class TensorType(NamedTuple):
    """One type of ggml.

    Attributes:
        name: as llama.cpp writes it.
        block_size: numbers in a block; a row holds whole blocks.
        kept_bits: bits of a value as our kernels keep it; 0 where it is expanded.
        group_size: values that share a scale as they are kept.
        has_offsets: whether a group has an offset beside its scale.
    """

    name: str
    block_size: int
    block_bytes: int
    kept_bits: int = 0
    group_size: int = 0
    has_offsets: bool = False


# The key is the number that stands in the file.
TENSOR_TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18, 4, 32),
    3: TensorType("Q4_1", 32, 20, 4, 32, True),
    6: TensorType("Q5_0", 32, 22, 8, 32),
    7: TensorType("Q5_1", 32, 24, 8, 32, True),
    8: TensorType("Q8_0", 32, 34, 8, 32),
    10: TensorType("Q2_K", 256, 84, 4, 16, True),
    11: TensorType("Q3_K", 256, 110, 4, 16),
    12: TensorType("Q4_K", 256, 144, 4, 32, True),
    13: TensorType("Q5_K", 256, 176, 8, 32, True),
    14: TensorType("Q6_K", 256, 210, 8, 16),
    16: TensorType("IQ2_XXS", 256, 66),
    17: TensorType("IQ2_XS", 256, 74),
    18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50),
    20: TensorType("IQ4_NL", 32, 18, 8, 32),
    21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82),
    23: TensorType("IQ4_XS", 256, 136, 8, 32),
    28: TensorType("F64", 1, 8),
    29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    39: TensorType("MXFP4", 32, 17),
}
TYPE_NUMBERS = {kind.name: number for number, kind in TENSOR_TYPES.items()}
# Numbers as they are.
PLAIN_TYPES = frozenset({"F64", "F32", "F16", "BF16"})
# Only the package gguf reads them (its tables are large), so they need the extra.
RARE_TYPES = frozenset(kind.name for kind in TENSOR_TYPES.values() if not kind.kept_bits) - PLAIN_TYPES
