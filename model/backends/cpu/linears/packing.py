"""How weights lie in memory for the kernels: 64 outputs at a time, their inputs in order, 64 bytes for 16 outputs.

A vector of 64 bytes holds 16 outputs; of each, 32 bits with the weights of 8, 4, 2 inputs or 1. So a thread reads one
stream from its first block of outputs to its last.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from model.backends.cpu.ir.writer import LANES
from model.backends.cpu.linears.product_ir import BLOCK, INPUTS_PER_VECTOR, VECTORS

_ALIGNMENT = 64
_BLOCKS_AT_ONCE = 8
_MIDDLES = -0x7F7F7F80  # 128 in each byte


def pack_integers(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Packs unsigned integers.

    Args:
        values: [K, N], from 0 to 2 ** bits - 1; N a multiple of 64, K of what a vector holds.
        bits: 4 or 8.

    Returns:
        [N / 64, K / inputs, 4, 64] uint8, aligned. 8-bit values have 128 taken off.
    """
    num_inputs, num_outputs = values.shape
    inputs = INPUTS_PER_VECTOR[bits]
    out = aligned_empty(num_outputs // BLOCK, num_inputs // inputs, VECTORS, 64)
    for first in range(num_outputs // BLOCK):
        part = values[:, first * BLOCK : (first + 1) * BLOCK].to(torch.int16)
        if bits == 8:
            part = (part - 128).to(torch.int8).view(-1, inputs, VECTORS, LANES)
            out[first] = part.permute(0, 2, 3, 1).reshape(-1, VECTORS, 64).view(torch.uint8)
            continue
        # k = 8 s + 2 i + j: nibble i of word j, so that one shift gives a pair of neighbours.
        part = part.view(-1, 4, 2, VECTORS, LANES).permute(0, 3, 4, 2, 1)
        words = part[..., 0] | part[..., 1] << 4 | part[..., 2] << 8 | part[..., 3] << 12
        out[first] = words.contiguous().view(torch.uint8).view(-1, VECTORS, 64)
    return out


def pack_gptq_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Packs integers as `pack_integers` does, from the words of the published layout and without taking them apart.

    Both keep the same inputs of an output in a word; only their order in it, and that of the words, is another.

    Args:
        words: [K * bits / 32, N] int32, the first input of a word in its lowest bits; N a multiple of 64.
        bits: 4 or 8.
    """
    num_words, num_outputs = words.shape
    out = aligned_empty(num_outputs // BLOCK, num_words, VECTORS, 64)
    packed = out.view(torch.int32).view(-1, num_words, BLOCK)
    blocks = words.reshape(num_words, -1, BLOCK).transpose(0, 1)
    for first in range(0, len(packed), _BLOCKS_AT_ONCE):  # few enough to stay in a cache
        part = packed[first : first + _BLOCKS_AT_ONCE]
        part.copy_(blocks[first : first + _BLOCKS_AT_ONCE])
        if bits == 8:
            part.bitwise_xor_(_MIDDLES)
            continue
        # Nibbles 01234567 become 02134657 and then 02461357: the even ones in the lower half.
        for shift, mask in ((4, 0x00F000F0), (8, 0x0000FF00)):
            moved = (part >> shift).bitwise_xor_(part).bitwise_and_(mask)
            part.bitwise_xor_(moved).bitwise_xor_(moved.bitwise_left_shift_(shift))
    return out


def pack_floats(
    weight: torch.Tensor, block: int = BLOCK, allocate: Callable[..., torch.Tensor] | None = None
) -> torch.Tensor:
    """Packs a weight [N, K] of bfloat16 or float32; N a multiple of the block, K even in bfloat16.

    Args:
        weight: contiguous.
        block: how many outputs lie together, a multiple of 16.
        allocate: gives memory of a shape; None for `aligned_empty`.

    Returns:
        [N / block, K * itemsize / 4, block / 16, 64] uint8, aligned.
    """
    words = weight.view(torch.int32).view(len(weight) // block, block // LANES, LANES, -1)
    out = (allocate or aligned_empty)(len(words), words.shape[-1], block // LANES, 64)
    for target, part in zip(out, words, strict=True):  # one at a time stays in a cache
        target.copy_(part.permute(2, 0, 1).contiguous().view(torch.uint8))
    return out


def pack_groups(table: torch.Tensor) -> torch.Tensor:
    """Lays out a number for each group and output, [G, N], as [N / 64, G, 64] float32."""
    num_groups, num_outputs = table.shape
    return table.float().reshape(num_groups, num_outputs // BLOCK, BLOCK).transpose(0, 1).contiguous()


def aligned_empty(*shape: int) -> torch.Tensor:
    """uint8 memory that begins at a multiple of 64 bytes."""
    size = math.prod(shape)
    raw = torch.empty(size + _ALIGNMENT, dtype=torch.uint8)
    skip = -raw.data_ptr() % _ALIGNMENT
    return raw[skip : skip + size].view(shape)
