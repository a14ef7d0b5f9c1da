"""Logits to token ids, for all sequences of a step in one pass.

Each row is treated by row-wise operations only, and its randomness is one number derived from (seed, choice, how many
tokens came before), so a reply does not depend on what else is in the batch, on preemption or on chunking. There is
no loop over the vocabulary in Python; per-sequence work is a handful of scalars.

Order of operations (that of the published code's generate, extended): token mask, repetition penalty, frequency and
presence penalties, logit bias, min_tokens; then greedy, or temperature, top_k, top_p, min_p and the draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as AlignedList
from typing import NamedTuple

import torch
import torch.nn.functional as F

from model.messages import MIN_LOGPROB, TokenLogprob
from model.sampling_params import SamplingParams
from model.sequence import UNKNOWN_TOKEN

_MASK_64 = (1 << 64) - 1

# top_k, top_p and min_p are decided among this many of the likeliest tokens, as soon as they provably suffice. A row of
# 151,936 takes 0.25, 0.7 and 2.8 ms on a CPU, sorting all of it 12 ms.
_NUM_CANDIDATES = (64, 1024, 16384)

# Candidates are weighed in float64 and several arrays of them; more rows than this allows take turns.
_MAX_CANDIDATES_AT_ONCE = 1 << 21

# What is looked for in a whole row is looked for among blocks of this many first. It divides the published
# vocabularies; others are copied into rows of whole blocks.
_BLOCK = 128


class SamplingRow(NamedTuple):
    """One sequence whose next token is wanted.

    Attributes:
        seq_id: names its penalty history.
        sampling: its parameters.
        token_ids: prompt and output so far; the last may be `UNKNOWN_TOKEN`.
        num_prompt_tokens: how many of them are the prompt.
        stream_key: 64 bits from seed and choice index (`stream_key`).
        source: where that last token is among those sampled by the step before, or -1.
    """

    seq_id: int
    sampling: SamplingParams
    token_ids: list[int]
    num_prompt_tokens: int
    stream_key: int
    source: int = -1

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - self.num_prompt_tokens


class SampledToken(NamedTuple):
    """A row's next token.

    Attributes:
        token_id: the token.
        logprob: it and its alternatives under the raw logits, if asked for.
        is_valid: False when the row's logits were not numbers; the token then means nothing.
    """

    token_id: int
    logprob: TokenLogprob | None
    is_valid: bool


# From logits [S, vocab_size] and S rows to ids [S] int64 and whether each row was of numbers, [S] bool.
Choose = Callable[[torch.Tensor, AlignedList[SamplingRow]], tuple[torch.Tensor, torch.Tensor]]


class PendingSample:
    """Rows that have been sampled on the device; the host has seen nothing of it yet.

    Args:
        ids: [S] int64.
        is_valid: [S] bool.
        reporter: of log-probabilities, or None if no row wants them.

    Attributes:
        tensors: what `read` needs a copy of on the host.
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
        return [SampledToken(*parts) for parts in zip(ids, logprobs, valid, strict=True)]


class Sampler:
    """Samples rows of logits. Keeps the token history of sequences with penalties on the device.

    Args:
        vocab_size: columns of the logits.
        device: where they are.
        max_num_seqs: the most sequences with a history at a time.
        max_model_len: the most tokens of one.
        choose: picks the tokens once penalties and masks are applied; None does it with torch alone.
    """

    def __init__(
        self,
        vocab_size: int,
        device: torch.device,
        max_num_seqs: int,
        max_model_len: int,
        choose: Choose | None = None,
    ) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._choose = choose or _choose
        self._history = _PenaltyHistory(device, max_num_seqs, max_model_len)

    def forget(self, seq_ids: Iterable[int]) -> None:
        """Drops the histories of sequences that ended."""
        self._history.forget(seq_ids)

    def sample(
        self, logits: torch.Tensor, rows: AlignedList[SamplingRow], masks: torch.Tensor | None = None
    ) -> list[SampledToken]:
        """Picks a token for each row and waits for it; see `launch`."""
        pending = self.launch(logits, rows, masks)
        return pending.read(pending.tensors)

    def launch(
        self,
        logits: torch.Tensor,
        rows: AlignedList[SamplingRow],
        masks: torch.Tensor | None = None,
        last_ids: torch.Tensor | None = None,
    ) -> PendingSample:
        """Picks a token for each row; on a GPU nothing is waited for.

        Args:
            logits: [S, vocab_size] float32; overwritten.
            rows: S sequences.
            masks: [S, ceil(vocab_size / 32)] int32 bit masks of allowed tokens, or None for no constraint.
            last_ids: [any] int64, what the step before sampled; needed by rows with a `source`.
        """
        reports = self._logprob_reporter(logits, rows)
        if masks is not None:
            is_allowed = unpack_bits(masks.to(self._device, non_blocking=True), self._vocab_size)
            logits.masked_fill_(~is_allowed, float("-inf"))
        self._history.apply(logits, rows, last_ids)
        _apply_bias(logits, rows)
        _forbid_early_endings(logits, rows)
        return PendingSample(*self._choose(logits, rows), reports)

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
        R entries.
    """
    reporter = _LogprobReporter(logits, [num_top] * len(next_ids))
    tensors = reporter.collect(_on(logits.device, next_ids))
    return [entry for entry in reporter.entries(tensors) if entry is not None]


def stream_key(seed: int, choice_index: int) -> int:
    """64 bits naming the random stream of one choice."""
    return _mix(_mix(seed & _MASK_64) ^ (choice_index + 1))


def uniform(key: int, index: int) -> float:
    """The stream's number for its token number `index`, in [0, 1): splitmix64's finaliser over a counter."""
    return (_mix(key ^ _mix(index + 1)) >> 11) * 2.0**-53


def unpack_bits(masks: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Expands bit masks.

    Args:
        masks: [S, ceil(vocab_size / 32)] int32, bit i of word w standing for token 32 * w + i.
        vocab_size: columns wanted.

    Returns:
        [S, vocab_size] bool.
    """
    shifts = torch.arange(32, dtype=torch.int32, device=masks.device)
    bits = (masks[:, :, None] >> shifts).bitwise_and_(1).to(torch.bool)
    return bits.flatten(1)[:, :vocab_size]


def _on(device: torch.device, values: object, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Moves numbers to the device without waiting for what it is doing."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


def _mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK_64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return x ^ (x >> 31)


class _LogprobReporter:
    """Reads log-probabilities from raw logits: what has to be kept is taken before the sampler overwrites them."""

    def __init__(self, logits: torch.Tensor, counts: AlignedList[int | None]) -> None:
        self._counts = counts
        self._wanted = [i for i, count in enumerate(counts) if count is not None]
        self._index = None if len(self._wanted) == len(counts) else _on(logits.device, self._wanted)
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


class _PenaltyHistory:
    """Token ids of sequences with penalties, one device row each, extended by one token a step.

    Next to each id stands what its occurrence adds to the logit: 0 for prompt tokens, minus the frequency penalty
    for output tokens, and minus the presence penalty too for the first occurrence. So repeated ids add up by
    themselves. Unused places repeat the row's first id and add 0, which changes nothing.
    """

    def __init__(self, device: torch.device, max_num_seqs: int, max_model_len: int) -> None:
        self._ids = torch.empty(max_num_seqs, max_model_len, dtype=torch.int64, device=device)
        self._added = torch.empty(max_num_seqs, max_model_len, dtype=torch.float32, device=device)
        self._free = list(range(max_num_seqs))
        self._slots: dict[int, _Slot] = {}
        self._device = device

    def forget(self, seq_ids: Iterable[int]) -> None:
        for seq_id in seq_ids:
            if slot := self._slots.pop(seq_id, None):
                self._free.append(slot.index)

    def apply(self, logits: torch.Tensor, rows: AlignedList[SamplingRow], last_ids: torch.Tensor | None) -> None:
        penalised = [i for i, row in enumerate(rows) if _has_penalty(row.sampling)]
        if not penalised:
            return
        slots = _on(self._device, self._extend([rows[i] for i in penalised], last_ids))
        index = None if len(penalised) == len(rows) else _on(self._device, penalised)
        length = max(len(rows[i].token_ids) for i in penalised)
        ids, added = self._ids[slots, :length], self._added[slots, :length]
        part = logits if index is None else logits[index]
        samplings = [rows[i].sampling for i in penalised]
        if any(sampling.repetition_penalty != 1.0 for sampling in samplings):
            penalty = _on(self._device, [[s.repetition_penalty] for s in samplings], torch.float32)
            seen = part.gather(1, ids)
            part.scatter_(1, ids, torch.where(seen > 0, seen / penalty, seen * penalty))
        if any(sampling.frequency_penalty or sampling.presence_penalty for sampling in samplings):
            part.scatter_add_(1, ids, added)
        if index is not None:
            logits[index] = part

    def _extend(self, rows: list[SamplingRow], last_ids: torch.Tensor | None) -> list[int]:
        """Brings the device rows up to date; returns their numbers."""
        self._evict_for(rows)
        slots, columns, ids, added = [], [], [], []
        unknown: list[SamplingRow] = []
        for row in rows:
            slot = self._slots.get(row.seq_id) or self._start(row)
            sampling = row.sampling
            for column in range(slot.num_known, len(row.token_ids)):
                token_id = row.token_ids[column]
                if token_id == UNKNOWN_TOKEN:
                    unknown.append(row)
                    break
                first = token_id not in slot.seen
                slot.seen.add(token_id)
                slot.num_known = column + 1
                if column >= slot.length:  # else it was written when only the device knew it
                    slots.append(slot.index)
                    columns.append(column)
                    ids.append(token_id)
                    added.append(-sampling.frequency_penalty - (sampling.presence_penalty if first else 0.0))
            slot.length = len(row.token_ids)
        if slots:
            where = _on(self._device, slots), _on(self._device, columns)
            self._ids[where] = _on(self._device, ids)
            self._added[where] = _on(self._device, added, torch.float32)
        if unknown:
            assert last_ids is not None
            self._append_unknown(unknown, last_ids)
        return [self._slots[row.seq_id].index for row in rows]

    def _append_unknown(self, rows: list[SamplingRow], last_ids: torch.Tensor) -> None:
        """Adds tokens that the host has not seen, from where the step before left them."""
        samplings = [row.sampling for row in rows]
        numbers = [
            [self._slots[row.seq_id].index, len(row.token_ids) - 1, row.source, row.num_prompt_tokens] for row in rows
        ]
        slots, columns, sources, firsts = _on(self._device, numbers).unbind(1)
        penalties = [[s.frequency_penalty, s.presence_penalty] for s in samplings]
        frequency, presence = _on(self._device, penalties, torch.float32).unbind(1)
        ids = last_ids[sources]
        places = torch.arange(max(len(row.token_ids) for row in rows), device=self._device)
        is_output = (places >= firsts[:, None]) & (places < columns[:, None])
        is_repeated = ((self._ids[slots, : len(places)] == ids[:, None]) & is_output).any(1)
        self._ids[slots, columns] = ids
        self._added[slots, columns] = -frequency - torch.where(is_repeated, 0.0, presence)

    def _evict_for(self, rows: list[SamplingRow]) -> None:
        """Makes room: preempted sequences keep their history until somebody running needs its place."""
        num_new = sum(row.seq_id not in self._slots for row in rows)
        if num_new > len(self._free):
            running = {row.seq_id for row in rows}
            self.forget([seq_id for seq_id in self._slots if seq_id not in running])

    def _start(self, row: SamplingRow) -> _Slot:
        slot = _Slot(self._free.pop(), row.num_prompt_tokens)
        self._slots[row.seq_id] = slot
        self._ids[slot.index].fill_(row.token_ids[0])
        self._added[slot.index].zero_()
        prompt = row.token_ids[: row.num_prompt_tokens]
        self._ids[slot.index, : len(prompt)] = _on(self._device, prompt)
        return slot


class _Slot:
    """Where a sequence's history is, how long it is, and which ids its output has had.

    The device's row has `length` tokens; the host knew `num_known` of them when it last looked.
    """

    __slots__ = ("index", "length", "num_known", "seen")

    def __init__(self, index: int, length: int) -> None:
        self.index = index
        self.length = length
        self.num_known = length
        self.seen: set[int] = set()


def _has_penalty(sampling: SamplingParams) -> bool:
    return bool(sampling.repetition_penalty != 1.0 or sampling.frequency_penalty or sampling.presence_penalty)


def _apply_bias(logits: torch.Tensor, rows: AlignedList[SamplingRow]) -> None:
    places = [(i, token_id, bias) for i, row in enumerate(rows) for token_id, bias in row.sampling.logit_bias]
    if places:
        where = tuple(_on(logits.device, column) for column in list(zip(*places, strict=True))[:2])
        added = _on(logits.device, [p[2] for p in places], torch.float32)
        logits.index_put_(where, added, accumulate=True)


def _forbid_early_endings(logits: torch.Tensor, rows: AlignedList[SamplingRow]) -> None:
    places = [
        (i, token_id)
        for i, row in enumerate(rows)
        if row.num_output_tokens < row.sampling.min_tokens and row.sampling.grammar is None
        for token_id in row.sampling.ending_token_ids
    ]
    if places:
        where = tuple(_on(logits.device, column) for column in zip(*places, strict=True))
        logits.index_put_(where, _on(logits.device, float("-inf"), torch.float32))


def _choose(logits: torch.Tensor, rows: AlignedList[SamplingRow]) -> tuple[torch.Tensor, torch.Tensor]:
    """A `Choose` of torch operations."""
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
    # Relative to the likeliest token, whose weight is 1: so neither tiny temperatures nor large logits overflow.
    temperature.clamp_min_(torch.finfo(torch.float32).tiny)
    weights = logits.sub_(logits.amax(-1, keepdim=True)).div_(temperature[:, None]).exp_()
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
