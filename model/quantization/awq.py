"""AWQ linears in AutoAWQ's "gemm" layout, read exactly.

The numbers are GPTQ's (integers of 4 bits, a zero and a scale a group), dealt out otherwise: words run along the
outputs, and a word's nibbles hold its eight columns in the order that AutoAWQ's kernel unpacks them. So a layer deals
them out anew once it is loaded, and is a GPTQ layer from then on.
"""

from __future__ import annotations

import torch
from torch import nn

from model.backends.base import Backend
from model.contract.config import QuantizationConfig
from model.distributed.shard import LinearShard
from model.quantization.gptq import GPTQLinear
from model.quantization.packing import WORD_BITS, pack_rows

_BITS = 4
# Which of a word's eight columns each of its nibbles holds, the lowest first.
_COLUMN_OF_NIBBLE = (0, 2, 4, 6, 1, 3, 5, 7)
# Dealt out at a time: a value takes four bytes while it is.
_ROWS_PER_PASS = 1024


class AWQLinear(GPTQLinear):
    """A quantised linear layer; see `GPTQLinear` for what it computes.

    `qweight` is [K, N / 8], `qzeros` [G, N / 8] with zeros as they are, `scales` [G, N].

    Args:
        in_features: K.
        out_features: N.
        quantization: group size.
        backend: keeps the weight and multiplies.
        dtype: of the activations.
        shard: the part of it that this rank has; None is all.

    Raises:
        CheckpointError: the shape, or the rank's part of it, does not divide into words.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        quantization: QuantizationConfig,
        backend: Backend,
        dtype: torch.dtype,
        shard: LinearShard | None = None,
    ) -> None:
        super().__init__(
            in_features, out_features, quantization=quantization, backend=backend, dtype=dtype, shard=shard
        )
        if shard is not None:
            in_features, out_features = shard.num_inputs, shard.num_outputs
            self.cuts["qweight"] = shard.input_cut(0) or self.cuts["qzeros"]
        words = torch.empty(in_features, out_features * _BITS // WORD_BITS, dtype=torch.int32, device="meta")
        self.qweight = nn.Parameter(words, requires_grad=False)

    def finish_loading(self) -> int:
        """Deals the integers out as GPTQ does, and goes on as there.

        Returns:
            Bytes of what is kept.
        """
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
