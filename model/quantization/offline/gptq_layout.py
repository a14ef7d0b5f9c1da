"""A quantised linear as the published GPTQ layout stores it."""

from __future__ import annotations

import torch

from model.contract.errors import CheckpointError
from model.quantization.offline.gptq_solver import QuantizedLinear
from model.quantization.packing import WORD_BITS, pack_rows


def check_shape(name: str, num_inputs: int, num_outputs: int, bits: int) -> None:
    """Refuses a linear whose weights do not fill whole words.

    Raises:
        CheckpointError: names it.
    """
    per_word = WORD_BITS // bits
    if num_inputs % per_word or num_outputs % per_word:
        raise CheckpointError(
            f"{name}: {num_inputs} x {num_outputs} does not divide into words of {per_word} values; "
            f"{'try --bits 8' if bits == 4 else 'it cannot be stored in this layout'}"
        )


def pack_linear(linear: QuantizedLinear, bias: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Returns the tensors of a layer, on the CPU: qweight, qzeros, scales, g_idx and bias.

    Args:
        bias: [N]; None is stored as zeros.
    """
    num_groups, num_outputs = linear.scales.shape
    # Zeros are stored minus one.
    zeros = torch.full((num_outputs, num_groups), linear.zero - 1, dtype=torch.int32)
    stored_bias = torch.zeros(num_outputs) if bias is None else bias
    return {
        "qweight": pack_rows(linear.values.cpu(), linear.bits),
        "qzeros": pack_rows(zeros, linear.bits).t().contiguous(),
        "scales": linear.scales.cpu().contiguous(),
        "g_idx": linear.g_idx.cpu().contiguous(),
        "bias": stored_bias.to(device="cpu", dtype=torch.float16).contiguous(),
    }
