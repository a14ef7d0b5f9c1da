"""From weighed logits to tokens with torch alone: the greedy choice, the filters and the draw.

What cuts a row down (top_k, top_p, min_p) is decided among its likeliest tokens, more of them only where that proves
too few; sorting a whole vocabulary would take longer than the rest of a step on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence as AlignedList

import torch
import torch.nn.functional as F

from model.contract.sampling_params import SamplingParams
from model.sampling.sampling_row import SamplingRow, uniform

# top_k, top_p and min_p are decided among this many of the likeliest tokens, as soon as they provably suffice. A row of
# 151,936 takes 0.25, 0.7 and 2.8 ms on a CPU, sorting all of it 12 ms.
_NUM_CANDIDATES = (64, 1024, 16384)

# Candidates are weighed in float64 and several arrays of them; more rows than this allows take turns.
_MAX_CANDIDATES_AT_ONCE = 1 << 21

# What is looked for in a whole row is looked for among blocks of this many first. It divides the published
# vocabularies; others are copied into rows of whole blocks.
_BLOCK = 128


def sample_tokens(logits: torch.Tensor, rows: AlignedList[SamplingRow]) -> tuple[torch.Tensor, torch.Tensor]:
    """A `SampleTokens` of torch operations."""
    best, token_ids = _argmax(logits)
    random_rows = [i for i, row in enumerate(rows) if row.sampling.temperature > 0]
    if random_rows:
        chosen = logits if len(random_rows) == len(rows) else logits[random_rows]
        token_ids[random_rows] = _draw(chosen, [rows[i] for i in random_rows])
    return token_ids, torch.isfinite(best)


def _argmax(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Like `logits.max(-1)`, five times as fast on a CPU; the first of equal ones.

    Args:
        logits: [S, vocab_size] float32.

    Returns:
        the largest [S] float32 (NaN if there is one), and where it is, [S] int64.
    """
    blocks = _blocks(logits, float("-inf"))
    best, block = blocks.amax(-1).max(-1)
    column = blocks[torch.arange(len(blocks), device=blocks.device), block].argmax(-1)
    return best, block * _BLOCK + column


def _draw(logits: torch.Tensor, rows: list[SamplingRow]) -> torch.Tensor:
    """Draws a token for each row by inverting the cumulative distribution at one uniform number.

    Args:
        logits: [S, vocab_size] float32; overwritten.
        rows: S sequences with a temperature.

    Returns:
        [S] int64.
    """
    device = logits.device
    temperature = torch.tensor([row.sampling.temperature for row in rows], dtype=torch.float32, device=device)
    # Relative to the likeliest token: so neither tiny temperatures nor large logits overflow.
    temperature.clamp_min_(torch.finfo(torch.float32).tiny)
    # Unlike torch's exp, which rounds the last few numbers of an array otherwise, softmax sees a row alone.
    weights = logits.sub_(logits.amax(-1, keepdim=True)).div_(temperature[:, None]).softmax(-1)
    draws = torch.tensor(
        [uniform(row.stream_key, row.num_output_tokens) for row in rows], dtype=torch.float64, device=device
    )
    filtered = [i for i, row in enumerate(rows) if _has_filter(row.sampling)]
    if not filtered:
        return _invert(weights, draws)
    if len(filtered) == len(rows):
        return _draw_filtered(weights, rows, draws)
    plain = [i for i, row in enumerate(rows) if not _has_filter(row.sampling)]
    result = torch.empty(len(rows), dtype=torch.int64, device=device)
    result[plain] = _invert(weights[plain], draws[plain])
    result[filtered] = _draw_filtered(weights[filtered], [rows[i] for i in filtered], draws[filtered])
    return result


def _has_filter(sampling: SamplingParams) -> bool:
    return sampling.top_p < 1.0 or sampling.top_k > 0 or sampling.min_p > 0.0


def _draw_filtered(weights: torch.Tensor, rows: list[SamplingRow], draws: torch.Tensor) -> torch.Tensor:
    vocab_size = weights.shape[-1]
    totals = _blocks(weights, 0.0).sum(-1).sum(-1, dtype=torch.float64)
    result = torch.empty(len(rows), dtype=torch.int64, device=weights.device)
    pending = list(range(len(rows)))
    # Candidates that are a good part of the vocabulary would cost as much as all of it.
    for num_candidates in (*(n for n in _NUM_CANDIDATES if 8 * n < vocab_size), vocab_size):
        group_size = max(1, _MAX_CANDIDATES_AT_ONCE // num_candidates)
        groups = [pending[first : first + group_size] for first in range(0, len(pending), group_size)]
        pending = []
        for group in groups:
            part = weights if len(group) == len(rows) else weights[group]
            part_rows = [rows[i] for i in group]
            result[group], is_enough = _draw_among(part, totals[group], part_rows, draws[group], num_candidates)
            if num_candidates < vocab_size:
                pending += [i for i, enough in zip(group, is_enough.tolist(), strict=True) if not enough]
        if not pending:
            break
    return result


def _draw_among(
    weights: torch.Tensor, totals: torch.Tensor, rows: list[SamplingRow], draws: torch.Tensor, num_candidates: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Applies top_k, then top_p to what it left (renormalised), then min_p, among the likeliest candidates.

    Args:
        weights: [S, vocab_size] float32, proportional to the probabilities.
        totals: [S] float64, their sums.
        rows: S sequences.
        draws: [S] float64 in [0, 1).
        num_candidates: how many of the likeliest tokens to look at.

    Returns:
        tokens [S] int64, and [S] bool: whether the candidates held all that the filters keep.
    """
    device = weights.device
    samplings = [row.sampling for row in rows]
    vocab_size = weights.shape[-1]
    values, token_ids = torch.topk(weights, num_candidates, dim=-1)
    top_k = torch.tensor([s.top_k if 0 < s.top_k < vocab_size else vocab_size for s in samplings], device=device)
    top_p = torch.tensor([s.top_p for s in samplings], dtype=torch.float64, device=device)
    min_p = torch.tensor([s.min_p for s in samplings], dtype=torch.float64, device=device)
    probs = values.to(torch.float64) / totals[:, None]
    probs.masked_fill_(torch.arange(num_candidates, device=device) >= top_k[:, None], 0.0)
    cumulative = probs.cumsum(-1)
    has_top_k = top_k < vocab_size
    mass = torch.where(has_top_k, cumulative[:, -1], 1.0)
    is_kept = (cumulative - probs) < (top_p * mass)[:, None]
    is_kept |= (top_p >= 1.0)[:, None]
    is_kept &= probs >= min_p[:, None] * probs[:, :1]
    is_kept[:, 0] = True
    # Where top_k keeps more than the candidates, the mass that top_p takes its share of is not known.
    is_enough = (
        (top_k <= num_candidates)
        | (~has_top_k & (top_p < 1.0) & (cumulative[:, -1] >= top_p))
        | ((~has_top_k | (top_p >= 1.0)) & (probs[:, -1] < min_p * probs[:, 0]))
    )
    picked = _invert(probs.masked_fill_(~is_kept, 0.0), draws)
    return token_ids.gather(1, picked[:, None])[:, 0], is_enough


def _invert(weights: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Finds where each row's running sum passes its share `draws` of the total.

    Args:
        weights: [S, N], proportional to the probabilities.
        draws: [S] float64 in [0, 1).

    Returns:
        [S] int64, always a column with a positive weight.
    """
    blocks = _blocks(weights, 0.0)
    sums = blocks.sum(-1).to(torch.float64)
    block, rest = _find(sums, draws * sums.sum(-1))
    inside = blocks[torch.arange(len(blocks), device=blocks.device), block]
    column, _ = _find(inside.to(torch.float64), rest)
    # A row that is not of numbers has no such column, and no meaning either; but it must not leave its bounds.
    return (block * _BLOCK + column).clamp_max_(weights.shape[-1] - 1)


def _blocks(rows: torch.Tensor, fill: float) -> torch.Tensor:
    """Splits [S, N] into [S, number of blocks, _BLOCK], the last block filled up."""
    missing = -rows.shape[-1] % _BLOCK
    padded = F.pad(rows, (0, missing), value=fill) if missing else rows
    return padded.reshape(len(rows), -1, _BLOCK)


def _find(weights: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds the first column whose running sum exceeds `target`.

    Args:
        weights: [S, N] float64.
        target: [S] float64; where rounding made it the total or more, the last positive column is taken.

    Returns:
        the column [S] int64, and what `target` exceeds the sum before it by, [S] float64, not negative.
    """
    cumulative = weights.cumsum(-1)
    last_positive = weights.shape[-1] - 1 - (weights > 0).flip(-1).to(torch.uint8).argmax(-1)
    column = torch.searchsorted(cumulative, target[:, None], right=True)[:, 0].minimum(last_positive)
    before = (cumulative - weights).gather(1, column[:, None])[:, 0]
    return column, (target - before).clamp_min_(0.0)
