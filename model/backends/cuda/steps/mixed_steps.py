"""Steps of any kind: laid out on the device from one copy, and replayed from a CUDA graph where they are short.

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
from model.backends.cuda.kernels.attention.decode_attention import FIXED_SPLITS, DecodeRows, choose_num_splits
from model.backends.cuda.kernels.attention.prefill_attention import PrefillTiles, choose_block_rows, tile_records
from model.backends.cuda.kernels.decode_inputs import NUM_FIELDS, DecodeInputs, make_decode_inputs
from model.backends.cuda.steps.angles import Angles
from model.backends.cuda.steps.attention_plan import ALIGNMENT, AttentionPlan
from model.backends.cuda.steps.decode_graphs import UNUSED_ROW
from model.backends.cuda.steps.recording import Recorder, Recordings, StepNumbers
from model.contract.config import ModelConfig
from model.execution.forward_batch import ForwardBatch, SequenceSpan
from model.execution.kv_cache import KVCache
from model.scheduling.sequence import UNKNOWN_TOKEN

# A product takes as long for 300 rows as for 320, so finer steps would save nothing.
_NUM_TOKENS = (16, 32, 64, 96, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024)

# Recorded are steps with few decodes, whose keys must be cut into many parts, and with any number of them.
_FEW_DECODES = 16
_DECODES_TO_SPLIT_FOR = 64

# Of a recorded step, beside the tiles that its tokens fill.
_MAX_CHUNKS = 32

_TILE_FIELDS = 4


class StepSize(NamedTuple):
    """What is fixed in a step's layout.

    Attributes:
        num_tokens: rows.
        num_decodes: sequences with one row.
        num_tiles: of query rows of chunks.
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
        """From one of those three columns to the next."""
        return _aligned(self.num_decodes)

    @property
    def table_start(self) -> int:
        """Where the block tables begin; behind them stand the rows whose logits are needed."""
        return self.decodes_start + 3 * self.decodes_stride


class CudaSteps:
    """Implements `model.backends.base.Steps`.

    Args:
        step: the model, from a batch to hidden states [T, hidden_size].
        config: of the checkpoint.
        cache: of all steps.
        last_ids: [any] int64, where every step leaves the ids it sampled; a step has no more sequences.
        max_model_len: the longest sequence.
        max_num_tokens: of a step.
        dtype: of the activations.
        angles: of the checkpoint.
        recorder: of the device.
        make_inputs: `make_decode_inputs`, or what stands in for it.
        plan_adapters: see `Backend`.
        is_recorded: whether short steps are recorded.
        any_rank: see `Backend.capture_decode`.
        is_fixed: whether tiles and parts must not depend on what else is in the step.

    Attributes:
        sizes: that were recorded, ascending.
    """

    def __init__(
        self,
        step: Callable[[ForwardBatch], torch.Tensor],
        config: ModelConfig,
        cache: KVCache,
        last_ids: torch.Tensor,
        max_model_len: int,
        max_num_tokens: int,
        dtype: torch.dtype,
        angles: Angles,
        recorder: Recorder,
        make_inputs: Callable[..., DecodeInputs] = make_decode_inputs,
        plan_adapters: Callable[[AbstractSequence[SequenceSpan]], Any] = lambda spans: None,
        any_rank: Callable[[bool], bool] | None = None,
        is_recorded: bool = True,
        is_fixed: bool = False,
    ) -> None:
        self._step = step
        self._vocab_size = config.vocab_size
        self._cache = cache
        self._last_ids = last_ids
        self._max_model_len = max_model_len
        self._dtype = dtype
        self._angles = angles
        self._make_inputs = make_inputs
        self._plan_adapters = plan_adapters
        self._is_fixed = is_fixed
        self._result: torch.Tensor | None = None
        max_num_seqs = len(last_ids)
        num_rows = max(max_num_tokens + max_num_seqs, _NUM_TOKENS[0])
        # Of a row its fields, its place among the rows with logits and among the decodes; in the worst case it is half
        # of a chunk, which has a tile. Recorded sizes have tiles to spare.
        per_row = NUM_FIELDS + 1 + 3 + _TILE_FIELDS // 2
        to_spare = _MAX_CHUNKS * _TILE_FIELDS + 8 * ALIGNMENT
        num_blocks = max_num_seqs * -(-max_model_len // cache.block_size)
        device = cache.data.device
        self._staged = StepNumbers(num_rows * per_row + to_spare + num_blocks, device, recorder.mark)
        self._recordings: Recordings[StepSize] = Recordings(recorder, any_rank, "steps with prompts")
        if is_recorded:
            sizes = self._sizes_to_record(max_num_tokens)
            self._recordings.record_all(sizes, self._run_recorded, self._set_numbers, device)
        self.sizes = self._recordings.sizes

    def _sizes_to_record(self, max_num_tokens: int) -> list[StepSize]:
        sizes = []
        highest = min(max_num_tokens, MAX_RECORDED_TOKENS)
        for num_tokens in _up_to(_NUM_TOKENS, highest):
            block_rows = self._block_rows(num_tokens)
            num_tiles = min(-(-num_tokens // block_rows) + _MAX_CHUNKS, max(1, num_tokens // 2))
            most = min(num_tokens, len(self._last_ids))
            sizes += [StepSize(num_tokens, n, num_tiles, block_rows) for n in sorted({min(_FEW_DECODES, most), most})]
        return sizes

    def _block_rows(self, longest_chunk: int) -> int:
        return choose_block_rows(self._dtype, 1 << 30 if self._is_fixed else longest_chunk)

    def _set_numbers(self, size: StepSize, has_sequences: bool) -> int:
        """Lays out a decode and a chunk, or nothing; their keys go to blocks that nothing has been written to."""
        if not has_sequences:
            self._send((), (), size)
            return 0
        block_size = self._cache.block_size
        most = min((self._cache.num_blocks - 1) * block_size, self._max_model_len, size.num_tokens - 1)
        blocks = list(range(1, 1 + -(-most // block_size)))
        ids = [i % self._vocab_size for i in range(most)]
        spans = [SequenceSpan([self._vocab_size - 1], 0, 1.0, [0], 1), SequenceSpan(ids, 0, 1.0, blocks, 1)]
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
        batch = self._batch(size, choose_num_splits(num_decodes, self._cache.data.shape[2], longest), spans)
        return self._step(batch).index_select(0, logit_rows)

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
            table.extend(span.block_table[: -(-span.context_len // self._cache.block_size)])
            token, alpha = span.token_ids[-1], self._angles.rows[span.rope_alpha]
            if token == UNKNOWN_TOKEN:
                token = -1 - source
            if num_tokens == 1:
                decodes.append((row, span.context_len, start))
                decode_fields.append((token, span.start, alpha, start))
            else:
                chunks.append((row, span.start, num_tokens, start))
                own = rows[row : row + num_tokens]
                own[:, 0] = span.token_ids
                own[-1, 0] = token
                own[:, 1] = np.arange(span.start, span.context_len, dtype=np.int32)
                own[:, 2:] = alpha, start
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
        """What is recorded; all sizes leave their hidden states in one place."""
        num_seqs = min(size.num_decodes, _DECODES_TO_SPLIT_FOR)
        batch = self._batch(size, choose_num_splits(num_seqs, self._cache.data.shape[2], self._max_model_len), ())
        hidden = self._step(batch)
        if self._result is None:
            num_rows = max(size.num_tokens, MAX_RECORDED_TOKENS)
            self._result = torch.empty((num_rows, hidden.shape[1]), dtype=hidden.dtype, device=hidden.device)
        self._result[: size.num_tokens].copy_(hidden)
        return self._result[: size.num_tokens]

    def _batch(self, size: StepSize, num_splits: int, spans: AbstractSequence[SequenceSpan]) -> ForwardBatch:
        """The step whose numbers are on the device, or are to be there."""
        numbers = self._staged.on_device
        fields = numbers[: size.tiles_start].view(-1, NUM_FIELDS)
        table = numbers[size.table_start :]
        inputs = self._make_inputs(fields, table, self._last_ids, self._angles.tables, self._cache.block_size)
        columns = numbers[size.decodes_start : size.table_start].view(3, -1)[:, : size.num_decodes]
        rows, lengths, starts = columns.unbind(0)
        tiles = numbers[size.tiles_start : size.decodes_start].view(-1, _TILE_FIELDS)
        plan = AttentionPlan(
            cache=self._cache,
            decodes=DecodeRows(rows, lengths, starts, table) if size.num_decodes else None,
            num_splits=FIXED_SPLITS if self._is_fixed else num_splits,
            tiles=PrefillTiles(tiles, table, size.block_rows) if size.num_tiles else None,
            is_fixed=self._is_fixed,
        )
        return ForwardBatch(
            spans=spans,
            token_ids=inputs.token_ids,
            cos=inputs.cos,
            sin=inputs.sin,
            query_scale=inputs.query_scale,
            slots=inputs.slots,
            logit_rows=fields[:0, 0],  # the caller has them
            block_size=self._cache.block_size,
            attention_plan=plan,
            adapter_plan=self._plan_adapters(spans) if spans else None,
        )


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def _num_tiles(spans: AbstractSequence[SequenceSpan], block_rows: int) -> int:
    return sum(-(-span.num_tokens // block_rows) for span in spans if span.num_tokens > 1)


def _up_to(sizes: AbstractSequence[int], highest: int) -> list[int]:
    """The sizes below the highest, and it."""
    return [*(size for size in sizes if size < highest), highest]
