"""Logits to token ids, for all sequences of a step in one pass.

Each row is treated by row-wise operations only, and its randomness is one number derived from (seed, choice, how many
tokens came before), so a reply does not depend on what else is in the batch, on preemption or on chunking. There is
no loop over the vocabulary in Python; per-sequence work is a handful of scalars.

Order of operations (that of the published code's generate, extended): token mask, repetition penalty, frequency and
presence penalties, logit bias, min_tokens; then greedy, or temperature, top_k, top_p, min_p and the draw.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from collections.abc import Sequence as AlignedList
from typing import NamedTuple

import torch
from msgspec.structs import replace

from model.contract.messages import MIN_LOGPROB, TokenLogprob
from model.sampling.penalty_history import PenaltyHistory
from model.sampling.sampling_row import SampleTokens, SamplingRow, on_device, to_device
from model.sampling.torch_sampling import sample_tokens


class SampledToken(NamedTuple):
    """A row's next token.

    Attributes:
        logprob: log-probabilities of it and its alternatives under the raw logits, if asked for.
        is_valid: False when the row's logits were not numbers; the token then means nothing.
    """

    token_id: int
    logprob: TokenLogprob | None
    is_valid: bool


class SamplerOutput:
    """Rows that have been sampled on the device; the host has seen nothing of it yet.

    Args:
        ids: [S] int64.
        is_valid: [S] bool.
        reporter: reads log-probabilities; None if no row wants them.

    Attributes:
        tensors: tensors that `read` needs a copy of on the host.
    """

    def __init__(self, ids: torch.Tensor, is_valid: torch.Tensor, reporter: _LogprobReporter | None) -> None:
        self._reporter = reporter
        self.tensors = [ids, is_valid] + ([] if reporter is None else reporter.collect(ids))

    @property
    def ids(self) -> torch.Tensor:
        """[S] int64, on the device."""
        return self.tensors[0]

    def read(self, tensors: AlignedList[torch.Tensor]) -> list[SampledToken]:
        """Returns the tokens, given `tensors` or copies of them."""
        ids: list[int] = tensors[0].tolist()
        valid: list[bool] = tensors[1].tolist()
        logprobs = self._reporter.entries(tensors[2:]) if self._reporter is not None else [None] * len(ids)
        return list(map(SampledToken._make, zip(ids, logprobs, valid, strict=True)))


class Sampler:
    """Samples rows of logits. Keeps the token history of sequences with penalties on the device.

    Args:
        vocab_size: columns of the logits.
        max_num_seqs: the most sequences with a history at a time.
        max_model_len: the most tokens of one.
        sample: picks the tokens once penalties and masks are applied; None does it with torch alone.
    """

    def __init__(
        self,
        vocab_size: int,
        device: torch.device,
        max_num_seqs: int,
        max_model_len: int,
        sample: SampleTokens | None = None,
    ) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._sample_tokens = sample or sample_tokens
        self._history = PenaltyHistory(device, max_num_seqs, max_model_len)

    def forget(self, seq_ids: Iterable[int]) -> None:
        """Drops the histories of sequences that ended."""
        self._history.forget(seq_ids)

    def launch(
        self,
        logits: torch.Tensor,
        rows: AlignedList[SamplingRow],
        masks: torch.Tensor | None = None,
        last_ids: torch.Tensor | None = None,
    ) -> SamplerOutput:
        """Picks a token for each row; on a GPU nothing is waited for.

        Args:
            logits: [S, vocab_size] float32; overwritten.
            rows: S sequences.
            masks: [S, ceil(vocab_size / 32)] int32 bit masks of allowed tokens, or None for no constraint.
            last_ids: [any] int64, what the step before sampled; needed by rows with a `source`.
        """
        reports = self._logprob_reporter(logits, rows)
        if masks is not None:
            is_forbidden = forbidden_tokens(to_device(masks, self._device), self._vocab_size)
            logits.masked_fill_(is_forbidden, float("-inf"))
        self._history.apply(logits, rows, last_ids)
        _apply_bias(logits, rows)
        _forbid_early_endings(logits, rows)
        return SamplerOutput(*self._sample_tokens(logits, rows), reports)

    def _logprob_reporter(self, logits: torch.Tensor, rows: AlignedList[SamplingRow]) -> _LogprobReporter | None:
        counts = [row.sampling.num_logprobs for row in rows]
        return None if all(count is None for count in counts) else _LogprobReporter(logits, counts)


def prompt_logprobs(logits: torch.Tensor, next_ids: list[int], num_top: int) -> list[TokenLogprob]:
    """Log-probabilities of given tokens.

    Args:
        logits: [R, vocab_size] float32, row i predicting `next_ids[i]`.
        next_ids: R ids.
        num_top: how many alternatives to report.

    Returns:
        R entries, with ranks.
    """
    reporter = _LogprobReporter(logits, [num_top] * len(next_ids))
    ids = on_device(logits.device, next_ids)
    ranks: list[int] = (logits > logits.gather(1, ids[:, None])).sum(dim=1).add_(1).tolist()
    entries = reporter.entries(reporter.collect(ids))
    return [replace(entry, rank=rank) for entry, rank in zip(entries, ranks, strict=True) if entry is not None]


def forbidden_tokens(masks: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Expands bit masks: a table has eight answers for each byte, a third of the time that shifting bits takes.

    Args:
        masks: [S, W] int32, bit i of word w standing for token 32 * w + i.
        vocab_size: columns wanted.

    Returns:
        [S, vocab_size] bool, true where a bit is not set.
    """
    numbers = masks.view(torch.uint8).flatten().int()
    answers = _clear_bits(masks.device).index_select(0, numbers)
    return answers.view(torch.bool).view(len(masks), -1)[:, :vocab_size]


@functools.cache
def _clear_bits(device: torch.device) -> torch.Tensor:
    """By a byte's value, which of its bits are not set: [256] int64, each of eight bools."""
    bits = (torch.arange(256)[:, None] >> torch.arange(8)) & 1
    return (bits == 0).view(torch.int64)[:, 0].to(device)


class _LogprobReporter:
    """Reads log-probabilities from raw logits: what has to be kept is taken before the sampler overwrites them."""

    def __init__(self, logits: torch.Tensor, counts: AlignedList[int | None]) -> None:
        self._counts = counts
        self._wanted = [i for i, count in enumerate(counts) if count is not None]
        self._index = None if len(self._wanted) == len(counts) else on_device(logits.device, self._wanted)
        raw = logits if self._index is None else logits[self._index]
        self._logprobs = torch.log_softmax(raw, dim=-1)
        num_top = max(count for count in counts if count is not None)
        self._top = torch.topk(self._logprobs, min(num_top, logits.shape[-1]), dim=-1) if num_top else None

    def collect(self, token_ids: torch.Tensor) -> list[torch.Tensor]:
        """What `entries` reads, still on the device; `token_ids` [S] int64 are those of all rows."""
        ids = token_ids if self._index is None else token_ids[self._index]
        tensors = [self._logprobs.gather(1, ids[:, None])[:, 0].clamp_min(MIN_LOGPROB)]
        if self._top is not None:
            tensors += [self._top.values.clamp_min(MIN_LOGPROB), self._top.indices]
        return tensors

    def entries(self, tensors: AlignedList[torch.Tensor]) -> list[TokenLogprob | None]:
        """One entry a row, from what `collect` returned or copies of it."""
        chosen = tensors[0].tolist()
        result: list[TokenLogprob | None] = [None] * len(self._counts)
        if len(tensors) == 1:
            for i, logprob in zip(self._wanted, chosen, strict=True):
                result[i] = TokenLogprob(logprob, [], [])
            return result
        values, indices = tensors[1].tolist(), tensors[2].tolist()
        for i, logprob, top, top_ids in zip(self._wanted, chosen, values, indices, strict=True):
            count = self._counts[i]
            result[i] = TokenLogprob(logprob, top_ids[:count], top[:count])
        return result


def _apply_bias(logits: torch.Tensor, rows: AlignedList[SamplingRow]) -> None:
    biased = [i for i, row in enumerate(rows) if row.sampling.logit_bias]
    if not biased:
        return
    # Choices of a request share theirs: 1,024 for each of 128 would be read anew for every token.
    samplings = {id(rows[i].sampling): rows[i].sampling for i in biased}
    columns = {key: [torch.tensor(c) for c in zip(*s.logit_bias, strict=True)] for key, s in samplings.items()}
    ids, biases = (torch.cat([columns[id(rows[i].sampling)][column] for i in biased]) for column in (0, 1))
    counts = torch.tensor([len(rows[i].sampling.logit_bias) for i in biased])
    where = torch.repeat_interleave(torch.tensor(biased), counts), ids
    device = logits.device
    logits.index_put_(
        tuple(to_device(part, device) for part in where),
        to_device(biases.to(torch.float32), device),
        accumulate=True,
    )


def _forbid_early_endings(logits: torch.Tensor, rows: AlignedList[SamplingRow]) -> None:
    places = [
        (i, token_id)
        for i, row in enumerate(rows)
        if row.sampling.min_tokens and row.num_output_tokens < row.sampling.min_tokens and row.sampling.grammar is None
        for token_id in row.sampling.ending_token_ids
    ]
    if places:
        where = tuple(on_device(logits.device, column) for column in zip(*places, strict=True))
        logits.index_put_(where, on_device(logits.device, float("-inf"), torch.float32))
