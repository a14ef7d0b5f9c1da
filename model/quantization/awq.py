"""AWQ linears in AutoAWQ's "gemm" layout, read exactly.

The numbers are GPTQ's (integers of 4 bits, a zero and a scale a group), packed otherwise: words run along the outputs,
and a word's nibbles hold its eight columns in the order that AutoAWQ's kernel unpacks them. So a layer repacks them
once it is loaded, and is a GPTQ layer from then on.
"""

from __future__ import annotations

import torch
from torch import nn

from model.quantization.gptq import GPTQLinear
from model.quantization.packing import pack_rows

_BITS = 4
# Which of a word's eight columns each of its nibbles holds, the lowest first.
_COLUMN_OF_NIBBLE = (0, 2, 4, 6, 1, 3, 5, 7)
# Repacked at a time: a value takes four bytes meanwhile.
_ROWS_PER_PASS = 1024


class AWQLinear(GPTQLinear):
    """A quantised linear layer; see `GPTQLinear` for what it computes.

    `qweight` is [K, N / 8], `qzeros` [G, N / 8] with zeros as they are, `scales` [G, N].
    """

    packs_outputs = True

    def finish_loading(self) -> int:
        """Repacks the integers as GPTQ does, and goes on as there."""
        qweight, qzeros = self.qweight, self.qzeros
        assert qweight is not None and qzeros is not None
        parts = [
            pack_rows(unpack_columns(qweight.data[low : low + _ROWS_PER_PASS]), _BITS)
            for low in range(0, len(qweight), _ROWS_PER_PASS)
        ]
        self.qweight = nn.Parameter(torch.cat(parts), requires_grad=False)
        zeros = pack_rows(unpack_columns(qzeros.data).t(), _BITS).t().contiguous()
        self.qzeros = nn.Parameter(zeros, requires_grad=False)
        return super().finish_loading()


def unpack_columns(words: torch.Tensor) -> torch.Tensor:
    """Unpacks [R, C] int32 words to [R, 8 C] values from 0 to 15, each at its column."""
    values = words.new_empty((*words.shape, len(_COLUMN_OF_NIBBLE)))
    for nibble, column in enumerate(_COLUMN_OF_NIBBLE):
        values[..., column] = (words >> (_BITS * nibble)) & 15
    return values.flatten(1)
