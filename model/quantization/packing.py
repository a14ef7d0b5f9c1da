"""Small integers packed into 32-bit words as in the published GPTQ layout, or two in a byte."""

from __future__ import annotations

import torch

WORD_BITS = 32


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


def pack_halves(values: torch.Tensor) -> torch.Tensor:
    """Packs values of 4 bits two in a byte: the first half of each row in the low halves of [R, C / 2] uint8."""
    low, high = values.chunk(2, 1)
    return low | high << 4


def unpack_halves(packed: torch.Tensor) -> torch.Tensor:
    """The [R, C] uint8 values that `pack_halves` has packed."""
    return torch.cat((packed & 15, packed >> 4), 1)
