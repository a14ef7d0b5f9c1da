"""Steps of prompts and decodes, laid out on the device from one copy; short ones are replayed from CUDA graphs.

Launching the 300 to 500 kernels of a step takes Python 6 to 20 ms. A long prompt keeps the device busy for longer than
that; a short one, alone or beside decodes, does not, and everybody in the step waits for Python. So steps are recorded
for some numbers of tokens. What differs between two steps of one number is data: which rows are chunks, which decode,
where their keys are. The rows that a step lacks have position -1, missing tiles no rows, missing decodes no keys.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from typing import Any, NamedTuple

import numpy as np
import torch

from model.backends.base import MAX_RECORDED_TOKENS
from model.backends.cuda.kernels.attention.decode_attention import DecodeRows
from model.backends.cuda.kernels.attention.prefill_attention import PrefillTiles, choose_block_rows, tile_records
from model.backends.cuda.kernels.decode_inputs import NUM_FIELDS
from model.backends.cuda.steps.attention_plan import ALIGNMENT
from model.backends.cuda.steps.batch_builder import UNUSED_ROW, BatchBuilder
from model.backends.cuda.steps.recording import Recorder, Recordings, StepNumbers, sizes_up_to
from model.execution.forward_batch import ForwardBatch, SequenceSpan

# A product takes as long for 300 rows as for 320, so finer steps would save nothing.
_NUM_TOKENS = (16, 32, 64, 96, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024)

# Each number of tokens is recorded with few decodes, whose keys must be cut into many parts, and with the most.
_FEW_DECODES = 16
_DECODES_TO_SPLIT_FOR = 64

# Tiles of a recorded step beside those that its tokens fill: chunks may end within a tile.
_MAX_CHUNKS = 32

_TILE_FIELDS = 4


class StepSize(NamedTuple):
    """The fixed numbers of a step's layout.

    Attributes:
        num_tokens: rows.
        num_decodes: sequences with one row.
        num_tiles: tiles of query rows of chunks.
        block_rows: most rows of a tile.
    """

    num_tokens: int
    num_decodes: int
    num_tiles: int
    block_rows: int

    @property
    def tiles_start(self) -> int:
        """Where the tiles begin among the step's numbers, behind the fields of its rows."""
        return self.num_tokens * NUM_FIELDS

    @property
    def decodes_start(self) -> int:
        """Where the decodes' rows begin; their lengths and where their blocks begin follow."""
        return self.tiles_start + self.num_tiles * _TILE_FIELDS

    @property
    def decodes_stride(self) -> int:
        """The distance from one of those three columns to the next."""
        return _aligned(self.num_decodes)

    @property
    def table_start(self) -> int:
        """Where the block tables begin; behind them stand the rows whose logits are needed."""
        return self.decodes_start + 3 * self.decodes_stride


class CudaSteps:
    """Implements `model.backends.base.Steps`. A step has no more sequences than `StepContext.last_ids` has places.

    Args:
        builder: makes the batches.
        recorder: records short steps.
        plan_adapters: see `Backend`.
        is_recorded: whether short steps are recorded.

    Attributes:
        sizes: sizes that were recorded, ascending.
    """

    def __init__(
        self,
        builder: BatchBuilder,
        recorder: Recorder,
        plan_adapters: Callable[[AbstractSequence[SequenceSpan]], Any] = lambda spans: None,
        *,
        is_recorded: bool = True,
    ) -> None:
        self._builder = builder
        self._context = context = builder.context
        self._plan_adapters = plan_adapters
        self._result: torch.Tensor | None = None
        max_num_seqs = len(context.last_ids)
        num_rows = max(context.max_num_tokens + max_num_seqs, _NUM_TOKENS[0])
        # Of a row its fields, its place among the rows with logits and among the decodes; in the worst case it is half
        # of a chunk, which has a tile. Recorded sizes have tiles to spare.
        per_row = NUM_FIELDS + 1 + 3 + _TILE_FIELDS // 2
        to_spare = _MAX_CHUNKS * _TILE_FIELDS + 8 * ALIGNMENT
        num_blocks = max_num_seqs * -(-context.max_model_len // context.cache.block_size)
        capacity = num_rows * per_row + to_spare + num_blocks
        self._staged = StepNumbers(capacity, context.cache.data.device, recorder.mark)
        self._recordings: Recordings[StepSize] = Recordings(recorder, context, "steps with prompts")
        if is_recorded:
            self._recordings.record_all(self._sizes_to_record(), self._run_recorded, self._set_numbers)
        self.sizes = self._recordings.sizes

    def _sizes_to_record(self) -> list[StepSize]:
        sizes = []
        for num_tokens in sizes_up_to(min(self._context.max_num_tokens, MAX_RECORDED_TOKENS), _NUM_TOKENS):
            block_rows = self._block_rows(num_tokens)
            num_tiles = min(-(-num_tokens // block_rows) + _MAX_CHUNKS, max(1, num_tokens // 2))
            most = min(num_tokens, len(self._context.last_ids))
            sizes += [StepSize(num_tokens, n, num_tiles, block_rows) for n in sorted({min(_FEW_DECODES, most), most})]
        return sizes

    def _block_rows(self, longest_chunk: int) -> int:
        return choose_block_rows(self._builder.dtype, longest_chunk, batch_invariant=self._builder.batch_invariant)

    def _set_numbers(self, size: StepSize, has_sequences: bool) -> int:
        """Lays out a decode and a chunk, or nothing; their keys go to blocks that nothing has been written to."""
        if not has_sequences:
            self._send((), (), size)
            return 0
        cache, vocab_size = self._context.cache, self._context.config.vocab_size
        most = min((cache.num_blocks - 1) * cache.block_size, self._context.max_model_len, size.num_tokens - 1)
        blocks = list(range(1, 1 + -(-most // cache.block_size)))
        ids = [i % vocab_size for i in range(most)]
        spans = [SequenceSpan([vocab_size - 1], 0, 1.0, [0], 1), SequenceSpan(ids, 0, 1.0, blocks, 1)]
        spans = spans[: 1 + (most > 0)]
        self._send(spans, [-1] * len(spans), size)
        return 1 + most

    def run(self, spans: AbstractSequence[SequenceSpan], sources: AbstractSequence[int]) -> torch.Tensor:
        """See `Steps`."""
        num_tokens = sum(span.num_tokens for span in spans)
        num_decodes = sum(span.num_tokens == 1 for span in spans)
        size = self._recorded_size(spans, num_tokens, num_decodes)
        if size is not None:
            logit_rows = self._send(spans, sources, size)
            return self._recordings.replay(size).index_select(0, logit_rows)
        block_rows = self._block_rows(max(span.num_tokens for span in spans))
        size = StepSize(num_tokens, num_decodes, _num_tiles(spans, block_rows), block_rows)
        logit_rows = self._send(spans, sources, size)
        longest = max((span.context_len for span in spans if span.num_tokens == 1), default=1)
        batch = self._batch(size, self._builder.num_splits(num_decodes, longest), spans)
        return self._context.forward(batch).index_select(0, logit_rows)

    def _recorded_size(
        self, spans: AbstractSequence[SequenceSpan], num_tokens: int, num_decodes: int
    ) -> StepSize | None:
        """The recorded step that serves, if any: what adapters add to chunks is not recorded."""
        fitting = [size for size in self.sizes if size.num_tokens >= num_tokens]
        if not fitting or any(span.adapter_slot >= 0 for span in spans):
            return None
        num_tiles = _num_tiles(spans, fitting[0].block_rows)
        for size in fitting:
            if size.num_tokens == fitting[0].num_tokens and size.num_decodes >= num_decodes:
                return size if size.num_tiles >= num_tiles else None
        return None

    def _send(
        self, spans: AbstractSequence[SequenceSpan], sources: AbstractSequence[int], size: StepSize
    ) -> torch.Tensor:
        """Lays a step out and sends it; returns the rows whose logits are needed, [R] int32 on the device."""
        numbers = self._staged.prepare()
        rows = numbers[: size.tiles_start].reshape(-1, NUM_FIELDS)
        table: array[int] = array("i")
        decodes: list[tuple[int, int, int]] = []  # row, keys, where its blocks begin
        decode_fields: list[tuple[int, int, int, int]] = []
        chunks: list[tuple[int, int, int, int]] = []
        logit_rows: list[int] = []
        row = 0
        for span, source in zip(spans, sources, strict=True):
            start, num_tokens = len(table), span.num_tokens
            table.extend(self._builder.blocks(span))
            fields = self._builder.row_fields(span, source, start)
            if num_tokens == 1:
                decodes.append((row, span.context_len, start))
                decode_fields.append(fields)
            else:
                chunks.append((row, span.start, num_tokens, start))
                own = rows[row : row + num_tokens]
                own[:, 0] = span.token_ids
                own[-1, 0] = fields[0]
                own[:, 1] = np.arange(span.start, span.context_len, dtype=np.int32)
                own[:, 2:] = fields[2:]
            row += num_tokens
            logit_rows += range(row - span.num_logit_rows, row)
        rows[row:] = UNUSED_ROW
        columns = numbers[size.decodes_start : size.table_start].reshape(3, -1)
        columns[0], columns[1:] = -1, 0
        if decodes:
            columns[:, : len(decodes)] = np.array(decodes, dtype=np.int32).T
            rows[columns[0, : len(decodes)]] = decode_fields
        tiles = numbers[size.tiles_start : size.decodes_start]
        records = tile_records(chunks, size.block_rows)
        tiles[:] = 0
        tiles[: _TILE_FIELDS * len(records)] = list(itertools.chain.from_iterable(records))
        end = size.table_start + len(table)
        numbers[size.table_start : end] = np.frombuffer(table, dtype=np.int32)
        first = _aligned(end)
        numbers[first : first + len(logit_rows)] = logit_rows
        self._staged.send(first + len(logit_rows))
        return self._staged.on_device[first : first + len(logit_rows)]

    def _run_recorded(self, size: StepSize) -> torch.Tensor:
        """Runs a step that is recorded; all sizes leave their hidden states in one place."""
        num_seqs = min(size.num_decodes, _DECODES_TO_SPLIT_FOR)
        batch = self._batch(size, self._builder.num_splits(num_seqs, self._context.max_model_len), ())
        hidden = self._context.forward(batch)
        if self._result is None:
            num_rows = max(size.num_tokens, MAX_RECORDED_TOKENS)
            self._result = torch.empty((num_rows, hidden.shape[1]), dtype=hidden.dtype, device=hidden.device)
        self._result[: size.num_tokens].copy_(hidden)
        return self._result[: size.num_tokens]

    def _batch(self, size: StepSize, num_splits: int, spans: AbstractSequence[SequenceSpan]) -> ForwardBatch:
        """Makes the batch of the numbers on the device, which may be sent later."""
        numbers = self._staged.on_device
        table = numbers[size.table_start :]
        inputs = self._builder.row_inputs(numbers[: size.tiles_start].view(-1, NUM_FIELDS), table)
        columns = numbers[size.decodes_start : size.table_start].view(3, -1)[:, : size.num_decodes]
        rows, lengths, starts = columns.unbind(0)
        tiles = numbers[size.tiles_start : size.decodes_start].view(-1, _TILE_FIELDS)
        return self._builder.batch(
            inputs,
            DecodeRows(rows, lengths, starts, table) if size.num_decodes else None,
            PrefillTiles(tiles, table, size.block_rows) if size.num_tiles else None,
            num_splits,
            spans=spans,
            adapter_plan=self._plan_adapters(spans) if spans else None,
        )


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def _num_tiles(spans: AbstractSequence[SequenceSpan], block_rows: int) -> int:
    return sum(-(-span.num_tokens // block_rows) for span in spans if span.num_tokens > 1)
