"""GPTQ products in torch, for devices without kernels of ours: the weight stays as small as its file.

Whoever takes an Int4 checkpoint takes it because the device holds no more, so the weight is expanded anew for each
product, a part of the outputs at a time. Bytes of 4-bit weights hold an input of the first half and one of the second:
an expanded row is then two runs of consecutive inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from model.backends.base import GPTQTensors, GroupedWeight
from model.quantization.grouped import expand_rows
from model.quantization.packing import unpack_rows

# Of expanded weights at a time.
_EXPANDED_BYTES = 64 << 20


class TorchGPTQLinear:
    """Maps [T, K] to [T, N].

    Args:
        weight: as stored; its groups are of one size.
        bias: [N] or None.
        dtype: of the activations.
    """

    def __init__(self, weight: GPTQTensors, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        num_groups = weight.scales.shape[0]
        values = unpack_rows(weight.qweight, weight.bits).t().to(torch.uint8)  # [N, K]
        self._order: torch.Tensor | None = None
        if bool((weight.groups[1:] < weight.groups[:-1]).any()):
            self._order = torch.argsort(weight.groups, stable=True)
            values = values[:, self._order]
        num_outputs, num_inputs = values.shape
        self._has_pairs = weight.bits == 4 and num_inputs % 2 == 0
        if self._has_pairs:
            low, high = values.view(num_outputs, 2, num_inputs // 2).unbind(1)
            values = low | (high << 4)
        self._packed = values.contiguous()
        # In float16 an integer times a float16 scale rounds once, as it does from float32; in bfloat16 it would not.
        is_exact = dtype == torch.float16 and weight.scales.dtype == torch.float16
        compute = torch.float16 if is_exact else torch.float32
        zeros = unpack_rows(weight.qzeros.t().contiguous(), weight.bits) + weight.zero_offset  # [N, G]
        self._zeros = zeros.to(compute)[:, :, None]
        self._scales = weight.scales.t().to(compute).contiguous()[:, :, None]
        self._bias = bias
        self._dtype = dtype
        self._shape = (num_groups, num_inputs // num_groups)
        self._outputs_per_pass = max(1, _EXPANDED_BYTES // (num_inputs * compute.itemsize))
        self.num_bytes = sum(t.nbytes for t in (self._packed, self._zeros, self._scales, bias) if t is not None)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [T, K] to [T, N]."""
        if self._order is not None:
            x = x.index_select(1, self._order)
        num_outputs = len(self._packed)
        parts = []
        for low in range(0, num_outputs, self._outputs_per_pass):
            outputs = slice(low, low + self._outputs_per_pass)
            bias = None if self._bias is None else self._bias[outputs]
            parts.append(F.linear(x, self._expand(outputs), bias))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _expand(self, outputs: slice) -> torch.Tensor:
        packed = self._packed[outputs]
        if self._has_pairs:
            packed = torch.stack([packed & 15, packed >> 4], 1)
        values = packed.view(len(packed), *self._shape).to(self._scales.dtype)
        return values.sub_(self._zeros[outputs]).mul_(self._scales[outputs]).to(self._dtype).flatten(1)


class TorchGroupedLinear:
    """Maps [T, K] to [T, N].

    Args:
        weight: grouped.
        bias: [N] or None.
        dtype: of the activations.
    """

    def __init__(self, weight: GroupedWeight, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        num_inputs = weight.shape[1]
        self._has_pairs = weight.bits == 4 and num_inputs % 2 == 0
        if self._has_pairs:
            low, high = weight.values.chunk(2, 1)
            weight = weight._replace(values=low | (high << 4))
        self._weight = weight
        self._bias = None if bias is None else bias.to(dtype)
        self._dtype = dtype
        self._outputs_per_pass = max(1, _EXPANDED_BYTES // (num_inputs * torch.float32.itemsize))
        self.num_bytes = weight.num_bytes + (0 if bias is None else bias.nbytes)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [T, K] to [T, N]."""
        parts = []
        for low in range(0, len(self._weight.values), self._outputs_per_pass):
            outputs = slice(low, low + self._outputs_per_pass)
            bias = None if self._bias is None else self._bias[outputs]
            parts.append(F.linear(x, self._expand(outputs), bias))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _expand(self, outputs: slice) -> torch.Tensor:
        values, scales, offsets, _, zero, codes = self._weight
        values = values[outputs]
        if self._has_pairs:
            values = torch.cat((values & 15, values >> 4), 1)
        offsets = None if offsets is None else offsets[outputs]
        return expand_rows(values, scales[outputs], offsets, zero, codes).to(self._dtype)


def make_torch_gptq_linear(
    weight: GPTQTensors, bias: torch.Tensor | None, dtype: torch.dtype
) -> tuple[TorchGPTQLinear, int] | None:
    """Packs a weight.

    Returns:
        what multiplies with it, and its bytes; None where its groups are not all of one size.
    """
    num_groups = weight.scales.shape[0]
    counts = torch.bincount(weight.groups, minlength=num_groups)
    if bool((counts != counts[0]).any()):
        return None
    linear = TorchGPTQLinear(weight, bias, dtype)
    return linear, linear.num_bytes
