"""Decode steps as CUDA graphs: recorded once for some batch sizes, replayed without allocation or launches by the host.

A step of n sequences runs in the graph of the next batch size; its surplus rows have position -1: they attend to
nothing, write nothing to the cache, and nobody reads their logits. A graph reads its inputs from fixed places.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as AbstractSequence

import numpy as np
import torch

from model.backends.cuda.kernels.attention.decode_attention import DecodeRows
from model.backends.cuda.kernels.decode_inputs import NUM_FIELDS
from model.backends.cuda.low_rank import AdapterTable
from model.backends.cuda.steps.batch_builder import UNUSED_ROW, BatchBuilder
from model.backends.cuda.steps.recording import Recorder, Recordings, StepNumbers, sizes_up_to
from model.execution.forward_batch import SequenceSpan

_BATCH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)


class CudaDecodeGraphs:
    """Implements `model.backends.base.DecodeGraphs`.

    Args:
        builder: makes the batches.
        recorder: records the steps.
        with_adapters: whether rows may have adapters: for each what its adapter adds is worked out too.

    Attributes:
        batch_sizes: sizes that were recorded, ascending.
    """

    def __init__(self, builder: BatchBuilder, recorder: Recorder, *, with_adapters: bool = False) -> None:
        self._builder = builder
        self._context = context = builder.context
        self._with_adapters = with_adapters
        max_num_rows = min(len(context.last_ids), _BATCH_SIZES[-1])
        # The fields of the rows, the slots of their adapters, then the block tables one after another.
        self._slot_start = max_num_rows * NUM_FIELDS
        self._table_start = self._slot_start + max_num_rows
        capacity = self._table_start + max_num_rows * -(-context.max_model_len // context.cache.block_size)
        self._staged = StepNumbers(capacity, context.cache.data.device, recorder.mark)
        self._numbers = self._staged.on_device
        self._numbers[self._slot_start : self._table_start] = -1
        rows = self._numbers[: self._slot_start].view(-1, NUM_FIELDS)
        rows.copy_(torch.tensor(UNUSED_ROW, dtype=torch.int32))
        self._recordings: Recordings[int] = Recordings(recorder, context, "decode steps")
        self._recordings.record_all(sizes_up_to(max_num_rows, _BATCH_SIZES), self._decode, self._set_numbers)
        self.batch_sizes = self._recordings.sizes

    def _set_numbers(self, batch_size: int, has_sequences: bool) -> int:
        """Makes rows a sequence's first token each, in blocks of the cache that nothing has been written to."""
        num_rows = min(batch_size, self._context.cache.num_blocks) if has_sequences else 0
        fields = [(row % self._context.config.vocab_size, 0, 0, row) for row in range(num_rows)]
        fields += [UNUSED_ROW] * (batch_size - num_rows)
        self._numbers[: batch_size * NUM_FIELDS].copy_(torch.tensor(fields, dtype=torch.int32).flatten())
        self._numbers[self._table_start : self._table_start + num_rows].copy_(torch.arange(num_rows))
        return num_rows

    @property
    def max_num_rows(self) -> int:
        """The most sequences of a step; 0 when there was no memory for any."""
        return max(self.batch_sizes, default=0)

    def _decode(self, batch_size: int) -> torch.Tensor:
        """Runs the step that is recorded, from the numbers in the fixed buffer to logits [batch_size, vocab_size]."""
        builder, numbers = self._builder, self._numbers
        table = numbers[self._table_start :]
        inputs = builder.row_inputs(numbers[: batch_size * NUM_FIELDS].view(batch_size, NUM_FIELDS), table)
        rows = torch.arange(batch_size, dtype=torch.int32, device=numbers.device)
        slots = numbers[self._slot_start : self._slot_start + batch_size]
        batch = builder.batch(
            inputs,
            DecodeRows(rows, inputs.lengths, inputs.table_starts, table),
            None,
            builder.num_splits(batch_size, self._context.max_model_len),
            adapter_plan=AdapterTable(slots, []) if self._with_adapters else None,
        )
        return self._context.logits(self._context.forward(batch))

    def run(self, spans: AbstractSequence[SequenceSpan], sources: AbstractSequence[int]) -> torch.Tensor:
        """See `DecodeGraphs`."""
        batch_size = next(size for size in self.batch_sizes if size >= len(spans))
        num_spare = batch_size - len(spans)
        fields: list[int] = []
        table: array[int] = array("i")
        for span, source in zip(spans, sources, strict=True):
            fields += self._builder.row_fields(span, source, len(table))
            table.extend(self._builder.blocks(span))
        fields += UNUSED_ROW * num_spare
        numbers = self._staged.prepare()
        numbers[: len(fields)] = fields
        numbers[self._slot_start : self._slot_start + batch_size] = [s.adapter_slot for s in spans] + [-1] * num_spare
        end = self._table_start + len(table)
        numbers[self._table_start : end] = np.frombuffer(table, dtype=np.int32)
        self._staged.send(end)
        return self._recordings.replay(batch_size)[: len(spans)]
