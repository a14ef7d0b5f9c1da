"""The published GPTQ layout: small integers packed into 32-bit words, the first of a word in its lowest bits."""

from __future__ import annotations

import torch

from model.contract.errors import CheckpointError
from model.quantization.gptq_solver import QuantizedLinear

WORD_BITS = 32


def check_shape(name: str, num_inputs: int, num_outputs: int, bits: int) -> None:
    """Refuses a linear whose weights do not fill whole words.

    Raises:
        CheckpointError: naming it.
    """
    per_word = WORD_BITS // bits
    if num_inputs % per_word or num_outputs % per_word:
        raise CheckpointError(
            f"{name}: {num_inputs} x {num_outputs} does not divide into words of {per_word} values; "
            f"{'try --bits 8' if bits == 4 else 'it cannot be stored in this layout'}"
        )


def unpack_rows(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Unpacks integers that are packed along the first dimension.

    Args:
        words: [R, C] int32, each with 32 / bits values, the first in the lowest bits.

    Returns:
        [R * 32 / bits, C] int16, values from 0 to 2 ** bits - 1.
    """
    shifts = torch.arange(0, WORD_BITS, bits, dtype=torch.int32, device=words.device)
    values = (words[:, None, :] >> shifts[None, :, None]) & ((1 << bits) - 1)
    return values.to(torch.int16).flatten(0, 1)


def pack_rows(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Packs integers along the first dimension, the first of a word in its lowest bits.

    Args:
        values: [R, C], from 0 to 2 ** bits - 1; R a multiple of 32 / bits.

    Returns:
        [R * bits / 32, C] int32.
    """
    per_word = WORD_BITS // bits
    parts = values.to(torch.int32).view(-1, per_word, values.shape[1])
    words = torch.zeros_like(parts[:, 0])
    for place in range(per_word):
        words |= parts[:, place] << (place * bits)
    return words


def pack_linear(linear: QuantizedLinear, bias: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The tensors of a layer by their last name: qweight, qzeros, scales, g_idx and bias, on the CPU.

    Args:
        linear: quantised.
        bias: [N], or None: the layout stores zeros then.
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
