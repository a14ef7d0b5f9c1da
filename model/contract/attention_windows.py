"""How far back each layer's attention reads: `window_attn` of config.json and `--attention-window`.

Pure. With a window of N the token at position i reads the keys of positions j with i - j < N, its own among them; 0
stands for all positions. The published cards have such windows in one row of their long-context tables; the published
code has none, so the spelling is ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_LARGEST = 1 << 24  # far beyond any context, and small enough for 32 bits


def windows_of(value: Any, num_layers: int) -> tuple[int, ...]:
    """Reads windows: a number for all layers, a list or tuple of one a layer (or of one for all), or None or False.

    Returns:
        one window a layer; empty where every layer reads all positions.

    Raises:
        ValueError: it is none of that.
    """
    if value is None or value is False:
        return ()
    numbers = list(value) if isinstance(value, list | tuple) else [value]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= _LARGEST:
            raise ValueError(f"should be numbers of tokens, 0 (all of them) to {_LARGEST}, not {str(number)[:40]!r}")
    if len(numbers) == 1:
        numbers *= num_layers
    if len(numbers) != num_layers:
        raise ValueError(f"should be one number, or one for each of {num_layers} layers, not {len(numbers)}")
    return tuple(numbers) if any(numbers) else ()


def largest_window(windows: Iterable[int]) -> int | None:
    """Returns how many of the last positions the layers read at most; None where one of them reads all."""
    windows = tuple(windows)
    return max(windows) if windows and all(windows) else None


def num_blocks_kept(num_tokens: int, block_size: int, largest: int | None, num_unsettled: int) -> int:
    """Returns the most blocks that a sequence ever holds while it grows to `num_tokens`.

    Args:
        num_tokens: the length that it reaches.
        block_size: tokens in a block.
        largest: see `largest_window`.
        num_unsettled: the most tokens of it that are computed before passed blocks are given back.
    """
    num_blocks = -(-num_tokens // block_size)
    if largest is None:
        return num_blocks
    # A block more than is read stays: choices that share a prompt begin before its end. One more, as a window may
    # begin and end within blocks.
    return min(num_blocks, -(-(largest + num_unsettled) // block_size) + 2)


def num_blocks_passed(num_computed_tokens: int, block_size: int, largest: int | None) -> int:
    """Returns how many of a sequence's first blocks no layer will read again.

    Args:
        num_computed_tokens: tokens whose keys are in the cache; the next token has this position.
        block_size: tokens in a block.
        largest: see `largest_window`.
    """
    if largest is None:
        return 0
    return max(0, num_computed_tokens - largest + 1 - block_size) // block_size
