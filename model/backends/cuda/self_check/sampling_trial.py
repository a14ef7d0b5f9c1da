"""The trial of the sampling kernels: each draw is the middle of a token's share, so that rounding decides nothing."""

from __future__ import annotations

import torch

from model.backends.cuda.kernels.sampling.sample_rows import RowFilters
from model.backends.cuda.operations import Operation
from model.backends.cuda.self_check.inputs import Draw, KernelShape

# A share whose middle no sum in float32 misses.
_LEAST_SHARE = 1e-3
# Temperature, top_k, top_p, min_p of each row.
SAMPLING = ((0.0, 0, 1.0, 0.0), (1.0, 0, 1.0, 0.0), (0.7, 20, 0.9, 0.0), (1.5, 0, 0.6, 0.05))


def sample_rows(operation: Operation | None, shape: KernelShape, size: int) -> list[torch.Tensor]:
    """Samples from a vocabulary of a size, 0 for the checkpoint's; without an operation it tells the right tokens."""
    draw = Draw(shape, size)
    logits = draw.normal(len(SAMPLING), size or shape.vocab_size) * 3
    picks = [middle_of_a_share(row, *how) for row, how in zip(logits, SAMPLING, strict=True)]
    tokens, draws = zip(*picks, strict=True)
    if operation is None:
        return [torch.tensor(tokens, device=shape.device), torch.ones(len(tokens), device=shape.device)]
    temperature, top_k, top_p, min_p = (
        torch.tensor(column, dtype=torch.float32, device=shape.device)
        for column in zip(*SAMPLING, strict=True)
    )
    filters = RowFilters(
        temperature, top_k.int(), top_p, min_p, torch.tensor(draws, dtype=torch.float32, device=shape.device)
    )
    return list(operation(logits, filters))


def middle_of_a_share(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[int, float]:
    """A token that the filters keep, and the draw that picks it: the second likeliest, if its share is not tiny."""
    if temperature == 0:
        return int(logits.argmax()), 0.0
    probs = (logits.double().cpu() / temperature).softmax(-1)
    values, order = probs.sort(descending=True)
    if top_k:
        values[top_k:] = 0
    before = values.cumsum(0) - values
    values[before >= top_p * values.sum()] = 0
    values[values < min_p * values[0]] = 0
    kept = torch.zeros_like(probs).scatter_(0, order, values)
    token = int(order[1 if values[1] > _LEAST_SHARE * values.sum() else 0])
    before_token = float(kept[:token].sum())
    return token, (before_token + float(kept[token]) / 2) / float(kept.sum())
