"""Small integers packed into the 32-bit words of a GPTQ file."""

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
