"""Decode steps as CUDA graphs: recorded once for some batch sizes, replayed without allocation or a word from the host.

A step of n sequences runs in the graph of the next batch size; its surplus rows have position -1: they attend to
nothing, write nothing to the cache, and their logits are not looked at. What a graph reads lies in fixed places.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence

import numpy as np
import torch

from model.backends.cuda.kernels.attention.decode_attention import FIXED_SPLITS, DecodeRows, choose_num_splits
from model.backends.cuda.kernels.decode_inputs import NUM_FIELDS, DecodeInputs, make_decode_inputs
from model.backends.cuda.low_rank import AdapterTable
from model.backends.cuda.steps.angles import Angles
from model.backends.cuda.steps.attention_plan import AttentionPlan
from model.backends.cuda.steps.recording import Recorder, Recordings, StepNumbers
from model.contract.config import ModelConfig
from model.execution.forward_batch import ForwardBatch, SequenceSpan
from model.execution.kv_cache import KVCache
from model.scheduling.sequence import UNKNOWN_TOKEN

_BATCH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)

UNUSED_ROW = (0, -1, 0, 0)


class CapturedDecodes:
    """Implements `model.backends.base.DecodeGraphs`.

    Args:
        step: the model, from a batch to logits [T, vocab_size] float32.
        config: of the checkpoint.
        cache: of all steps.
        last_ids: [max_num_seqs] int64, where every step leaves the ids it sampled.
        max_model_len: the longest sequence.
        angles: of the checkpoint.
        recorder: of the device.
        make_inputs: `make_decode_inputs`, or what stands in for it.
        any_rank: see `Backend.capture_decode`.
        with_adapters: whether rows may have adapters: for each what theirs adds is worked out too.
        is_fixed: whether keys are cut into as many parts for every batch size.

    Attributes:
        batch_sizes: that were recorded, ascending.
    """

    def __init__(
        self,
        step: Callable[[ForwardBatch], torch.Tensor],
        config: ModelConfig,
        cache: KVCache,
        last_ids: torch.Tensor,
        max_model_len: int,
        angles: Angles,
        recorder: Recorder,
        make_inputs: Callable[..., DecodeInputs] = make_decode_inputs,
        any_rank: Callable[[bool], bool] | None = None,
        with_adapters: bool = False,
        is_fixed: bool = False,
    ) -> None:
        self._step = step
        self._cache = cache
        self._last_ids = last_ids
        self._max_model_len = max_model_len
        self._vocab_size = config.vocab_size
        self._make_inputs = make_inputs
        self._is_fixed = is_fixed
        device = cache.data.device
        max_num_rows = min(len(last_ids), _BATCH_SIZES[-1])
        self._angles = angles
        # The numbers of the rows, the slots of their adapters, then the block tables one after another.
        self._slot_start = max_num_rows * NUM_FIELDS
        self._with_adapters = with_adapters
        self._table_start = self._slot_start + max_num_rows
        capacity = self._table_start + max_num_rows * -(-max_model_len // cache.block_size)
        self._staged = StepNumbers(capacity, device, recorder.mark)
        self._numbers = self._staged.on_device
        self._numbers[self._slot_start : self._table_start] = -1
        rows = self._numbers[: self._slot_start].view(-1, NUM_FIELDS)
        rows.copy_(torch.tensor(UNUSED_ROW, dtype=torch.int32))
        self._recordings: Recordings[int] = Recordings(recorder, any_rank, "decode steps")
        self._recordings.record_all(_batch_sizes(max_num_rows), self._decode, self._set_numbers, device)
        self.batch_sizes = self._recordings.sizes

    def _set_numbers(self, batch_size: int, has_sequences: bool) -> int:
        """Makes rows a sequence's first token each, in blocks of the cache that nothing has been written to."""
        num_rows = min(batch_size, self._cache.num_blocks) if has_sequences else 0
        fields = [(row % self._vocab_size, 0, 0, row) for row in range(num_rows)]
        fields += [UNUSED_ROW] * (batch_size - num_rows)
        self._numbers[: batch_size * NUM_FIELDS].copy_(torch.tensor(fields, dtype=torch.int32).flatten())
        self._numbers[self._table_start : self._table_start + num_rows].copy_(torch.arange(num_rows))
        return num_rows

    @property
    def max_num_rows(self) -> int:
        """The most sequences of a step; 0 when there was no memory for any."""
        return max(self.batch_sizes, default=0)

    def _decode(self, batch_size: int) -> torch.Tensor:
        """What is recorded: the step, from the numbers in the fixed buffer to logits [batch_size, vocab_size]."""
        fields = self._numbers[: batch_size * NUM_FIELDS].view(batch_size, NUM_FIELDS)
        table = self._numbers[self._table_start :]
        inputs = self._make_inputs(fields, table, self._last_ids, self._angles.tables, self._cache.block_size)
        rows = torch.arange(batch_size, dtype=torch.int32, device=fields.device)
        decodes = DecodeRows(rows, inputs.lengths, inputs.table_starts, table)
        num_heads = self._cache.data.shape[2]
        plan = AttentionPlan(
            cache=self._cache,
            decodes=decodes,
            num_splits=(
                FIXED_SPLITS if self._is_fixed else choose_num_splits(batch_size, num_heads, self._max_model_len)
            ),
            tiles=None,
            is_fixed=self._is_fixed,
        )
        return self._step(
            ForwardBatch(
                spans=(),
                token_ids=inputs.token_ids,
                cos=inputs.cos,
                sin=inputs.sin,
                query_scale=inputs.query_scale,
                slots=inputs.slots,
                logit_rows=rows,
                block_size=self._cache.block_size,
                attention_plan=plan,
                adapter_plan=AdapterTable(self._adapter_slots(batch_size), []) if self._with_adapters else None,
            )
        )

    def _adapter_slots(self, batch_size: int) -> torch.Tensor:
        return self._numbers[self._slot_start : self._slot_start + batch_size]

    def run(self, spans: AbstractSequence[SequenceSpan], sources: AbstractSequence[int]) -> torch.Tensor:
        """See `DecodeGraphs`."""
        batch_size = next(size for size in self.batch_sizes if size >= len(spans))
        fields, table = self._numbers_of(spans, sources)
        fields += UNUSED_ROW * (batch_size - len(spans))
        numbers = self._staged.prepare()
        numbers[: len(fields)] = fields
        slots = [span.adapter_slot for span in spans] + [-1] * (batch_size - len(spans))
        numbers[self._slot_start : self._slot_start + batch_size] = slots
        end = self._table_start + len(table)
        numbers[self._table_start : end] = np.frombuffer(table, dtype=np.int32)
        self._staged.send(end)
        return self._recordings.replay(batch_size)[: len(spans)]

    def _numbers_of(
        self, spans: AbstractSequence[SequenceSpan], sources: AbstractSequence[int]
    ) -> tuple[list[int], array[int]]:
        fields: list[int] = []
        table: array[int] = array("i")
        for span, source in zip(spans, sources, strict=True):
            token = span.token_ids[0]
            alpha = self._angles.rows[span.rope_alpha]
            start = len(table)
            table.extend(span.block_table[: -(-span.context_len // self._cache.block_size)])
            fields += (-1 - source if token == UNKNOWN_TOKEN else token, span.start, alpha, start)
        return fields, table


def _batch_sizes(max_num_rows: int) -> list[int]:
    """The sizes to record, ascending; the last one holds `max_num_rows`."""
    return [*(size for size in _BATCH_SIZES if size < max_num_rows), max_num_rows]
