"""Decode and prefill attention against float64: ragged batches, scattered blocks, every cache dtype."""

from __future__ import annotations

import math

import pytest
import torch

from model.backends.cuda.kernels.attention import decode_attention as decode
from model.backends.cuda.kernels.attention import prefill_attention as prefill

NUM_HEADS = 2
TOLERANCE = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


class Pool:
    """A cache of one layer with NaN (or 127) in every slot that no sequence owns."""

    def __init__(
        self, lengths: list[int], head_dim: int, block_size: int, dtype: torch.dtype, is_int8: bool,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.block_size = block_size
        counts = [-(-n // block_size) for n in lengths]
        blocks = torch.randperm(sum(counts) + 3)[: sum(counts)]
        self.table = blocks.to(torch.int32).to(device)
        self.starts = [sum(counts[:i]) for i in range(len(counts))]
        num_slots = (sum(counts) + 3) * block_size
        self.keys, self.values = [], []
        shape = (2, NUM_HEADS, num_slots, head_dim)
        self.scales = torch.full(shape[:3], math.nan) if is_int8 else None
        data = torch.full(shape, 127).to(torch.int8) if is_int8 else torch.full(shape, math.nan, dtype=dtype)
        for start, length in zip(self.starts, lengths, strict=True):
            positions = torch.arange(length)
            slots = blocks[start + positions // block_size] * block_size + positions % block_size
            content = torch.randn(2, NUM_HEADS, length, head_dim)
            if self.scales is not None:
                scale = content.abs().amax(-1) / 127
                stored = torch.round(content / scale[..., None])
                self.scales[:, :, slots] = scale
                content = stored * scale[..., None]
                data[:, :, slots] = stored.to(torch.int8)
            else:
                data[:, :, slots] = content.to(dtype)
                content = content.to(dtype).float()
            self.keys.append(content[0])
            self.values.append(content[1])
        self.data = data.to(device)
        self.scales = None if self.scales is None else self.scales.to(device)

    def forget(self, sequence: int, num_positions: int) -> None:
        """Takes away the blocks that hold none but a sequence's first positions."""
        start = self.starts[sequence]
        for index in range(start, start + num_positions // self.block_size):
            first = int(self.table[index]) * self.block_size
            (self.data if self.scales is None else self.scales[..., None])[:, :, first : first + self.block_size] = (
                math.nan
            )
            self.table[index] = -1

    def expected(
        self, sequence: int, query: torch.Tensor, first_position: int, window: int = 1 << 30
    ) -> torch.Tensor:
        """[n, heads, head_dim] queries from a position on, causal, in float64."""
        keys, values = self.keys[sequence].double(), self.values[sequence].double()
        scores = torch.einsum("nhd,hkd->hnk", query.double().cpu(), keys)
        distance = first_position + torch.arange(len(query))[:, None] - torch.arange(keys.shape[1])[None]
        seen = (distance >= 0) & (distance < window)
        probs = scores.masked_fill(~seen, -math.inf).softmax(-1)
        return torch.einsum("hnk,hkd->nhd", probs, values)


CACHES = [
    (torch.float32, False),
    (torch.bfloat16, False),
    (torch.float16, False),
    (torch.float32, True),
    (torch.bfloat16, True),
]


@pytest.mark.parametrize(("dtype", "is_int8"), CACHES)
@pytest.mark.parametrize(("head_dim", "block_size", "num_splits"), [(16, 16, 1), (64, 4, 3), (24, 1, 4)])
def test_decode(
    device: torch.device, dtype: torch.dtype, is_int8: bool, head_dim: int, block_size: int, num_splits: int
) -> None:
    """A row in the step that is no decode, a length of zero (an unused row), one token, many."""
    lengths = [0, 1, 37, 300]
    pool = Pool(lengths, head_dim, block_size, dtype, is_int8, device)
    query = (torch.randn(6, NUM_HEADS, head_dim) / 3).to(dtype).to(device)
    rows = [5, 0, 3, 2]
    decodes = decode.DecodeRows(  # type: ignore[call-arg]
        *(torch.tensor(x, dtype=torch.int32, device=device) for x in (rows, lengths, pool.starts)), pool.table
    )
    out = torch.full_like(query, 9.0)
    decode.decode_attention(
        query, pool.data, pool.scales, decodes, out, block_size=block_size, num_splits=num_splits
    )
    for sequence, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        if length == 0:
            assert (out[row] == 0).all()
            continue
        expected = pool.expected(sequence, query[row : row + 1], length - 1)
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(out[row : row + 1].double().cpu(), expected, rtol=tolerance, atol=tolerance)
    assert (out[[1, 4]] == 9.0).all(), "other rows are left alone"


@pytest.mark.parametrize(
    ("dtype", "is_int8", "block_size", "window", "num_splits"),
    [(torch.float32, False, 16, 1, 3), (torch.bfloat16, False, 4, 50, 1), (torch.bfloat16, True, 16, 130, 3)],
)
def test_decode_with_a_window(
    device: torch.device, dtype: torch.dtype, is_int8: bool, block_size: int, window: int, num_splits: int
) -> None:
    lengths = [0, 1, 37, 300]
    pool = Pool(lengths, 16, block_size, dtype, is_int8, device)
    query = (torch.randn(4, NUM_HEADS, 16) / 3).to(dtype).to(device)
    expected = [pool.expected(i, query[i : i + 1], n - 1, window) for i, n in enumerate(lengths) if n]
    for sequence, length in enumerate(lengths):
        pool.forget(sequence, max(0, length - window))
    columns = ([0, 1, 2, 3], lengths, pool.starts)
    rows, sizes, starts = (torch.tensor(column, dtype=torch.int32, device=device) for column in columns)
    decodes = decode.DecodeRows(rows, sizes, starts, pool.table)
    out = torch.full_like(query, 9.0)
    decode.decode_attention(
        query, pool.data, pool.scales, decodes, out, block_size=block_size, num_splits=num_splits, window=window
    )
    tolerance = TOLERANCE[dtype]
    assert (out[0] == 0).all()
    torch.testing.assert_close(out[1:].double().cpu(), torch.cat(expected), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("num_splits", [1, 4])
def test_decode_with_scores_far_apart(device: torch.device, num_splits: int) -> None:
    pool = Pool([500], 16, 16, torch.float32, False, device)
    query = torch.randn(1, NUM_HEADS, 16, device=device) * 40
    numbers = (torch.tensor(x, dtype=torch.int32, device=device) for x in ([0], [500], [0]))
    decodes = decode.DecodeRows(*numbers, pool.table)  # type: ignore[call-arg]
    out = torch.empty_like(query)
    decode.decode_attention(query, pool.data, None, decodes, out, block_size=16, num_splits=num_splits)
    torch.testing.assert_close(out.double().cpu(), pool.expected(0, query, 499), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("num_seqs", "max_length", "expected"),
    [(1, 100, 4), (1, 32768, 17), (64, 8192, 4), (256, 8192, 2), (256, 20, 1), (1, 300, 10)],
)
def test_number_of_splits(num_seqs: int, max_length: int, expected: int) -> None:
    assert decode.choose_num_splits(num_seqs, 32, max_length) == expected


@pytest.mark.parametrize(("dtype", "is_int8"), CACHES)
@pytest.mark.parametrize(("head_dim", "block_size", "block_rows"), [(16, 16, 16), (24, 4, 32)])
def test_prefill(
    device: torch.device, dtype: torch.dtype, is_int8: bool, head_dim: int, block_size: int, block_rows: int
) -> None:
    """Chunks with and without a cached prefix, ends that fall within and between tiles."""
    chunks = [(0, 33), (100, 20), (63, 1), (128, 16)]  # first position, number of rows
    lengths = [first + n for first, n in chunks]
    pool = Pool(lengths, head_dim, block_size, dtype, is_int8, device)
    num_rows = sum(n for _, n in chunks)
    query = (torch.randn(num_rows + 1, NUM_HEADS, head_dim) / 3).to(dtype).to(device)
    first_rows = [1, 34, 54, 55]
    records = prefill.tile_records(
        [(row, first, n, start) for row, (first, n), start in zip(first_rows, chunks, pool.starts, strict=True)],
        block_rows,
    )
    tiles = prefill.PrefillTiles(torch.tensor(records, dtype=torch.int32, device=device), pool.table, block_rows)
    out = torch.full_like(query, 9.0)
    prefill.prefill_attention(query, pool.data, pool.scales, tiles, out, block_size=block_size)
    for sequence, (row, (first, n)) in enumerate(zip(first_rows, chunks, strict=True)):
        expected = pool.expected(sequence, query[row : row + n], first)
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(out[row : row + n].double().cpu(), expected, rtol=tolerance, atol=tolerance)
    assert (out[0] == 9.0).all()


@pytest.mark.parametrize(
    ("dtype", "is_int8", "block_size", "window"), [(torch.float32, False, 4, 1), (torch.bfloat16, True, 16, 70)]
)
def test_prefill_with_a_window(
    device: torch.device, dtype: torch.dtype, is_int8: bool, block_size: int, window: int
) -> None:
    """Windows within a tile of keys and over several; what a row gives does not depend on the chunk that it is in."""
    length, block_rows = 120, 16
    pool = Pool([length], 16, block_size, dtype, is_int8, device)
    query = (torch.randn(length, NUM_HEADS, 16) / 3).to(dtype).to(device)
    expected = pool.expected(0, query, 0, window)

    def attend(first: int, count: int) -> torch.Tensor:
        records = torch.tensor(prefill.tile_records([(0, first, count, 0)], block_rows), dtype=torch.int32)
        out = torch.full_like(query[:count], 9.0)
        tiles = prefill.PrefillTiles(records.to(device), pool.table, block_rows)
        rows = query[first : first + count]
        prefill.prefill_attention(rows, pool.data, pool.scales, tiles, out, block_size=block_size, window=window)
        return out

    whole = attend(0, length)
    torch.testing.assert_close(whole.double().cpu(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    pool.forget(0, 103 + 1 - window)
    assert torch.equal(attend(103, 17), whole[103:])


def test_tiles_cover_every_row_once() -> None:
    chunks = [(0, 5, 40, 0), (40, 0, 16, 3), (56, 900, 17, 4)]
    records = prefill.tile_records(chunks, 16)
    rows = sorted(row for first, _, n, _ in records for row in range(first, first + n))
    assert rows == list(range(73))
    assert {(r[0] - 40, r[1]) for r in records if r[3] == 3} == {(0, 0)}
    assert [r[1] for r in records] == sorted((r[1] for r in records), reverse=True), "the longest contexts start first"
