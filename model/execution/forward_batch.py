"""One step's inputs as tensors: what the scheduler planned, laid out for the device.

A step is a flat batch: the new tokens of all its sequences one after another, decodes and prefill chunks alike.
Everything that differs between sequences (rotary base, LogN, where keys go) is worked out here, once a step,
so that the layers only see rows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from model.contract.config import ModelConfig


class SequenceSpan(NamedTuple):
    """One sequence's share of a step.

    Attributes:
        token_ids: the new tokens.
        start: position of the first new token; keys of all earlier positions are in the cache.
        rope_alpha: the request's NTK factor.
        block_table: KV cache blocks, covering at least `start + len(token_ids)` positions.
        num_logit_rows: how many of the last new tokens need logits (1 to sample; all for prompt log-probabilities).
        adapter_slot: slot of the request's adapter in the layers' tables; -1 for none.
    """

    token_ids: list[int]
    start: int
    rope_alpha: float
    block_table: list[int]
    num_logit_rows: int
    adapter_slot: int = -1

    @property
    def num_tokens(self) -> int:
        """New tokens in this step."""
        return len(self.token_ids)

    @property
    def context_len(self) -> int:
        """Positions whose keys exist once this step's are written."""
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """Device tensors of one step; T is the number of new tokens.

    Attributes:
        spans: the sequences, in row order.
        token_ids: [T] int64.
        cos: [T, rotary_dim / 2] float32, cosine of position times the request's inverse frequencies; `sin` likewise.
        query_scale: [T] float32, 1 / sqrt(head_dim) times LogN; multiplies the query in float32.
        slots: [T] int64, where each token's key and value go: block * block_size + offset.
        logit_rows: [R] int64, the rows whose logits are needed.
        block_size: tokens in a block.
        attention_plan: the plan of a backend that made the batch itself; None leaves planning to `plan_attention`.
        adapter_plan: the result of `Backend.plan_adapters`; None where no row has an adapter.
    """

    spans: AbstractSequence[SequenceSpan]
    token_ids: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    query_scale: torch.Tensor
    slots: torch.Tensor
    logit_rows: torch.Tensor
    block_size: int
    attention_plan: Any = None
    adapter_plan: Any = None

    @classmethod
    def build(
        cls,
        spans: AbstractSequence[SequenceSpan],
        config: ModelConfig,
        block_size: int,
        device: torch.device,
        adapter_plan: Any = None,
    ) -> ForwardBatch:
        """Lays out a step of at least one sequence with at least one new token."""
        from model.backends.cpu.rows.angles import cos_sin  # whose package imports this module

        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        logit_rows: list[int] = []
        for span in spans:
            if len(span.token_ids) == 1 and span.num_logit_rows == 1:  # a decode, as there may be hundreds
                start = span.start
                logit_rows.append(len(token_ids))
                token_ids.append(span.token_ids[0])
                positions.append(start)
                slots.append(span.block_table[start // block_size] * block_size + start % block_size)
                continue
            end = span.context_len
            token_ids += span.token_ids
            positions += range(span.start, end)
            slots += _slots(span.block_table, span.start, end, block_size)
            logit_rows += range(len(token_ids) - span.num_logit_rows, len(token_ids))
        position_tensor = torch.tensor(positions, dtype=torch.int64)
        cos, sin = cos_sin(position_tensor.to(torch.float32)[:, None] * _inverse_frequencies(spans, config))
        scale = query_scale(position_tensor, config)
        return cls(
            spans=spans,
            token_ids=torch.tensor(token_ids, dtype=torch.int64).to(device, non_blocking=True),
            cos=cos.to(device, non_blocking=True),
            sin=sin.to(device, non_blocking=True),
            query_scale=scale.to(device, non_blocking=True),
            slots=torch.tensor(slots, dtype=torch.int64).to(device, non_blocking=True),
            logit_rows=torch.tensor(logit_rows, dtype=torch.int64).to(device, non_blocking=True),
            block_size=block_size,
            adapter_plan=adapter_plan,
        )


@functools.lru_cache(maxsize=64)
def inverse_frequencies(config: ModelConfig, rope_alpha: float) -> torch.Tensor:
    """Rotary inverse frequencies under NTK.

    `1 / base' ** (2i / dim)` with `base' = base * alpha ** (dim / (dim - 2))`, as the published
    `RotaryEmbedding.update_rotary_pos_emb_cache`.

    Returns:
        [rotary_dim / 2] float32, on the CPU; shared, not to be written to.
    """
    dim = config.rotary_dim
    base = config.rotary_base * rope_alpha ** (dim / (dim - 2)) if dim > 2 else config.rotary_base
    return 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))


def query_scale(positions: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """The factor on each query: 1 / sqrt(head_dim), times LogN past the trained length.

    Args:
        positions: [T] int64, 0-based.
        config: `seq_length` and whether LogN is on.

    Returns:
        [T] float32: `log(p + 1) / log(seq_length)` where p + 1 > seq_length, else 1; over sqrt(head_dim).
    """
    scale = torch.full(positions.shape, 1.0 / math.sqrt(config.head_dim), dtype=torch.float32)
    if config.use_logn_attn and config.seq_length > 1:
        late = (positions + 1 > config.seq_length).nonzero()[:, 0]
        if len(late):  # one by one: torch's logarithm may depend on how many there are
            logs = [math.log(position + 1) / math.log(config.seq_length) for position in positions[late].tolist()]
            scale[late] *= torch.tensor(logs, dtype=torch.float64).to(scale)
    return scale


def _inverse_frequencies(spans: AbstractSequence[SequenceSpan], config: ModelConfig) -> torch.Tensor:
    """[T, rotary_dim / 2], or [1, rotary_dim / 2] when the whole step has one alpha."""
    alphas = sorted({span.rope_alpha for span in spans})
    table = torch.stack([inverse_frequencies(config, alpha) for alpha in alphas])
    if len(alphas) == 1:
        return table
    row = {alpha: i for i, alpha in enumerate(alphas)}
    rows = torch.tensor([row[span.rope_alpha] for span in spans])
    counts = torch.tensor([span.num_tokens for span in spans])
    return table[rows.repeat_interleave(counts)]


def _slots(block_table: list[int], start: int, end: int, block_size: int) -> list[int]:
    slots: list[int] = []
    for index in range(start // block_size, (end - 1) // block_size + 1):
        first = block_table[index] * block_size
        low = max(start - index * block_size, 0)
        high = min(end - index * block_size, block_size)
        slots += range(first + low, first + high)
    return slots
