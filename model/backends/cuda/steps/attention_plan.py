"""The plan of a step's attention, in one copy to the device: rows that decode, rows of chunks, places of their keys."""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass

import torch

from model.backends.cuda.kernels.attention.decode_attention import (
    DecodeRows,
    choose_num_splits,
    max_num_splits,
)
from model.backends.cuda.kernels.attention.prefill_attention import PrefillTiles, choose_block_rows, tile_records
from model.execution.forward_batch import SequenceSpan
from model.execution.kv_cache import KVCache

# Parts of the copy start at multiples of this many numbers, so that kernels see the same alignment each time.
ALIGNMENT = 4


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """One step's attention, the same in every layer.

    Attributes:
        cache: keys and values.
        decodes: the sequences with one new token, or None.
        num_splits: how many parts the decodes' keys are cut into.
        tiles: the chunks of more tokens, or None.
        batch_invariant: whether keys are always cut into as many parts.
    """

    cache: KVCache
    decodes: DecodeRows | None
    num_splits: int
    tiles: PrefillTiles | None
    batch_invariant: bool = False

    def num_splits_for(self, window: int) -> int:
        """Returns how many parts the keys are cut into in a layer with a window: no more than it has work for."""
        return min(self.num_splits, max_num_splits(window)) if window and not self.batch_invariant else self.num_splits


def make_plan(
    spans: AbstractSequence[SequenceSpan],
    cache: KVCache,
    device: torch.device,
    dtype: torch.dtype,
    *,
    batch_invariant: bool = False,
) -> AttentionPlan:
    """Plans a step.

    Args:
        spans: its sequences, in row order.
        cache: keys and values.
        device: gets the numbers.
        dtype: dtype of the queries.
        batch_invariant: whether tiles and parts must not depend on what else is in the step.
    """
    table: list[int] = []
    decodes: list[tuple[int, int, int]] = []  # row, keys, where its blocks begin
    chunks: list[tuple[int, int, int, int]] = []
    row = 0
    for span in spans:
        start = len(table)
        table += span.block_table[: -(-span.context_len // cache.block_size)]
        if span.num_tokens == 1:
            decodes.append((row, span.context_len, start))
        else:
            chunks.append((row, span.start, span.num_tokens, start))
        row += span.num_tokens
    longest_chunk = max((n for _, _, n, _ in chunks), default=1)
    block_rows = choose_block_rows(dtype, longest_chunk, batch_invariant=batch_invariant)
    records = tile_records(chunks, block_rows)
    parts = [*(list(column) for column in zip(*decodes, strict=True)), [n for r in records for n in r], table]
    views = iter(_to_device(parts, device))
    rows = None if not decodes else (next(views), next(views), next(views))
    tiles, table_view = next(views), next(views)
    num_heads = cache.data.shape[2]
    longest = max((length for _, length, _ in decodes), default=0)
    return AttentionPlan(
        cache=cache,
        decodes=None if rows is None else DecodeRows(*rows, table_view),
        num_splits=choose_num_splits(len(decodes), num_heads, longest, batch_invariant=batch_invariant),
        tiles=PrefillTiles(tiles.view(-1, 4), table_view, block_rows) if chunks else None,
        batch_invariant=batch_invariant,
    )


def _to_device(parts: list[list[int]], device: torch.device) -> list[torch.Tensor]:
    """Sends lists of numbers in one tensor; returns int32 views of it."""
    numbers: list[int] = []
    places = []
    for part in parts:
        places.append((len(numbers), len(numbers) + len(part)))
        numbers += part
        numbers += [0] * (-len(numbers) % ALIGNMENT)
    data = torch.tensor(numbers, dtype=torch.int32)
    if device.type == "cuda":
        data = data.pin_memory()
    data = data.to(device, non_blocking=True)
    return [data[low:high] for low, high in places]
