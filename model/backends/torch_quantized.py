"""Products with quantised weights in torch, for devices without kernels of ours: the weight stays as small as its file.

Whoever takes an Int4 checkpoint takes it because the device holds no more, so the weight is expanded anew for each
product, a part of the outputs at a time. Values of 4 bits lie two in a byte (`pack_halves`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from model.backends.weights import GPTQTensors, GroupedWeight
from model.quantization.grouped import StoredRows
from model.quantization.packing import pack_halves, unpack_halves, unpack_rows

# Of expanded weights at a time.
_EXPANDED_BYTES = 64 << 20


class _ExpandedLinear:
    """Maps [T, K] to [T, N] by a weight that is expanded in parts.

    Args:
        shape: N and K.
        bias: [N] or None.
        num_bytes: bytes of the packed weight.
        itemsize: bytes of a number while it is expanded.
    """

    def __init__(self, shape: Sequence[int], bias: torch.Tensor | None, num_bytes: int, itemsize: int) -> None:
        self._num_outputs = shape[0]
        self._bias = bias
        self._outputs_per_pass = max(1, _EXPANDED_BYTES // (shape[1] * itemsize))
        self.num_bytes = num_bytes + (0 if bias is None else bias.nbytes)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [T, K] to [T, N]."""
        parts = []
        for low in range(0, self._num_outputs, self._outputs_per_pass):
            outputs = slice(low, low + self._outputs_per_pass)
            bias = None if self._bias is None else self._bias[outputs]
            parts.append(F.linear(x, self._expand(outputs), bias))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _expand(self, outputs: slice) -> torch.Tensor:
        """The weight of some outputs, [outputs, K], in the dtype of the activations."""
        raise NotImplementedError


class TorchGPTQLinear(_ExpandedLinear):
    """A weight of the GPTQ layout whose groups are of one size.

    Args:
        weight: as stored.
        bias: [N] or None.
        dtype: dtype of the activations.
    """

    def __init__(self, weight: GPTQTensors, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        values = unpack_rows(weight.qweight, weight.bits).t().to(torch.uint8)  # [N, K]
        num_outputs, num_inputs = values.shape
        self._order = weight.order_by_group()
        if self._order is not None:
            values = values[:, self._order]
        self._has_halves = weight.bits == 4 and num_inputs % 2 == 0
        self._packed = pack_halves(values) if self._has_halves else values.contiguous()
        # In float16 an integer times a float16 scale rounds once, as it does from float32; in bfloat16 it would not.
        is_exact = dtype == torch.float16 and weight.scales.dtype == torch.float16
        compute = torch.float16 if is_exact else torch.float32
        zeros = unpack_rows(weight.qzeros.t().contiguous(), weight.bits) + weight.zero_offset  # [N, G]
        self._zeros = zeros.to(compute)[:, :, None]
        self._scales = weight.scales.t().to(compute).contiguous()[:, :, None]
        self._dtype = dtype
        num_bytes = sum(tensor.nbytes for tensor in (self._packed, self._zeros, self._scales))
        super().__init__((num_outputs, num_inputs), bias, num_bytes, compute.itemsize)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [T, K] to [T, N]."""
        return super().__call__(x if self._order is None else x.index_select(1, self._order))

    def _expand(self, outputs: slice) -> torch.Tensor:
        packed = self._packed[outputs]
        values = unpack_halves(packed) if self._has_halves else packed
        values = values.view(len(values), self._scales.shape[1], -1).to(self._scales.dtype)
        return values.sub_(self._zeros[outputs]).mul_(self._scales[outputs]).to(self._dtype).flatten(1)


class TorchGroupedLinear(_ExpandedLinear):
    """A grouped weight.

    Args:
        weight: as stored.
        bias: [N] or None.
        dtype: dtype of the activations.
    """

    def __init__(self, weight: GroupedWeight, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        self._rows = StoredRows(weight)
        self._dtype = dtype
        bias = None if bias is None else bias.to(dtype)
        super().__init__(weight.shape, bias, self._rows.num_bytes, torch.float32.itemsize)

    def _expand(self, outputs: slice) -> torch.Tensor:
        return self._rows.expand(outputs).to(self._dtype)


def make_torch_gptq_linear(
    weight: GPTQTensors, bias: torch.Tensor | None, dtype: torch.dtype
) -> tuple[TorchGPTQLinear, int] | None:
    """Packs a weight; see `Backend.prepare_gptq_linear`. None where its groups are not all of one size."""
    if not weight.has_equal_groups():
        return None
    linear = TorchGPTQLinear(weight, bias, dtype)
    return linear, linear.num_bytes
