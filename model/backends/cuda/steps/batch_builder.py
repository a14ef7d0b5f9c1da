"""The fields of rows and the batch that is made of them, alike for decode steps and steps with prompts."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from typing import Any

import torch

from model.backends.base import StepContext
from model.backends.cuda.kernels.attention.decode_attention import DecodeRows, choose_num_splits
from model.backends.cuda.kernels.attention.prefill_attention import PrefillTiles
from model.backends.cuda.kernels.decode_inputs import DecodeInputs, make_decode_inputs
from model.backends.cuda.steps.angles import Angles
from model.backends.cuda.steps.attention_plan import AttentionPlan
from model.execution.forward_batch import ForwardBatch, SequenceSpan
from model.scheduling.sequence import UNKNOWN_TOKEN

# The fields of a row that holds no token.
UNUSED_ROW = (0, -1, 0, 0)


@dataclass(frozen=True, slots=True)
class BatchBuilder:
    """Makes batches of the numbers that a step has sent to the device.

    Attributes:
        context: shared by all steps.
        angles: rotary angles of all positions.
        dtype: dtype of the activations.
        make_inputs: `make_decode_inputs`, or torch's operation in its place.
        batch_invariant: whether tiles and parts of keys must not depend on what else is in the step.
    """

    context: StepContext
    angles: Angles
    dtype: torch.dtype
    make_inputs: Callable[..., DecodeInputs] = make_decode_inputs
    batch_invariant: bool = False

    def num_splits(self, num_seqs: int, max_length: int) -> int:
        """Chooses how many parts the decodes' keys are cut into; see `choose_num_splits`."""
        num_heads = self.context.cache.data.shape[2]
        return choose_num_splits(num_seqs, num_heads, max_length, batch_invariant=self.batch_invariant)

    def row_fields(self, span: SequenceSpan, source: int, table_start: int) -> tuple[int, int, int, int]:
        """Returns the fields of a sequence's last new token, at its first new position; see `decode_inputs.NUM_FIELDS`.

        Args:
            span: the sequence's share of the step.
            source: the place of an unknown token in `last_ids`.
            table_start: the place of the sequence's first block in the step's table.
        """
        token = span.token_ids[-1]
        token = -1 - source if token == UNKNOWN_TOKEN else token
        return token, span.start, self.angles.rows[span.rope_alpha], table_start

    def blocks(self, span: SequenceSpan) -> list[int]:
        """Returns the blocks that hold a sequence's keys once the step has run."""
        return span.block_table[: -(-span.context_len // self.context.cache.block_size)]

    def row_inputs(self, fields: torch.Tensor, table: torch.Tensor) -> DecodeInputs:
        """Launches what works out the inputs of rows.

        Args:
            fields: [T, NUM_FIELDS] int32 on the device.
            table: [any] int32, block numbers.
        """
        context = self.context
        return self.make_inputs(fields, table, context.last_ids, self.angles.tables, context.cache.block_size)

    def batch(
        self,
        inputs: DecodeInputs,
        decodes: DecodeRows | None,
        tiles: PrefillTiles | None,
        num_splits: int,
        *,
        spans: AbstractSequence[SequenceSpan] = (),
        adapter_plan: Any | None = None,
    ) -> ForwardBatch:
        """Joins the inputs of rows and a plan of attention to a batch.

        Args:
            inputs: the result of `row_inputs`.
            decodes: the rows of sequences with one new token.
            tiles: the query tiles of chunks.
            num_splits: how many parts the decodes' keys are cut into.
            spans: the sequences; none where the batch is recorded.
            adapter_plan: the adapters of rows.
        """
        cache = self.context.cache
        return ForwardBatch(
            spans=spans,
            token_ids=inputs.token_ids,
            cos=inputs.cos,
            sin=inputs.sin,
            query_scale=inputs.query_scale,
            slots=inputs.slots,
            logit_rows=inputs.slots[:0],  # the caller has them
            block_size=cache.block_size,
            attention_plan=AttentionPlan(cache, decodes, num_splits, tiles, self.batch_invariant),
            adapter_plan=adapter_plan,
        )
