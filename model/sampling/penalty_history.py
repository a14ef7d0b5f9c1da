"""Repetition, frequency and presence penalties: the tokens that sequences have had, kept where the logits are."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as AlignedList
from dataclasses import dataclass, field

import torch

from model.contract.sampling_params import SamplingParams
from model.sampling.sampling_row import SamplingRow, on_device
from model.scheduling.sequence import UNKNOWN_TOKEN


class PenaltyHistory:
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
        """Drops sequences; unknown ids are ignored."""
        for seq_id in seq_ids:
            if slot := self._slots.pop(seq_id, None):
                self._free.append(slot.index)

    def apply(self, logits: torch.Tensor, rows: AlignedList[SamplingRow], last_ids: torch.Tensor | None) -> None:
        """Applies the penalties of those rows that have some.

        Args:
            logits: [S, vocab_size] float32, changed in place.
            rows: S sequences.
            last_ids: [any] int64, what the step before sampled; needed by rows with a `source`.
        """
        penalised = [i for i, row in enumerate(rows) if _has_penalty(row.sampling)]
        if not penalised:
            return
        slots = on_device(self._device, self._extend([rows[i] for i in penalised], last_ids))
        index = None if len(penalised) == len(rows) else on_device(self._device, penalised)
        length = max(len(rows[i].token_ids) + len(rows[i].draft_ids) for i in penalised)
        ids, added = self._ids[slots, :length], self._added[slots, :length]
        self._put_drafts(ids, added, [rows[i] for i in penalised])
        part = logits if index is None else logits[index]
        samplings = [rows[i].sampling for i in penalised]
        if any(sampling.repetition_penalty != 1.0 for sampling in samplings):
            penalty = on_device(self._device, [[s.repetition_penalty] for s in samplings], torch.float32)
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
            where = on_device(self._device, slots), on_device(self._device, columns)
            self._ids[where] = on_device(self._device, ids)
            self._added[where] = on_device(self._device, added, torch.float32)
        if unknown:
            assert last_ids is not None
            self._append_unknown(unknown, last_ids)
        return [self._slots[row.seq_id].index for row in rows]

    def _put_drafts(self, ids: torch.Tensor, added: torch.Tensor, rows: list[SamplingRow]) -> None:
        """Writes guesses behind the tokens of each row, in copies of the histories, as if they had been sampled."""
        places: list[tuple[int, int, int]] = []
        values: list[float] = []
        for index, row in enumerate(rows):
            seen = self._slots[row.seq_id].seen
            for i, token_id in enumerate(row.draft_ids):
                is_first = token_id not in seen and token_id not in row.draft_ids[:i]
                places.append((index, len(row.token_ids) + i, token_id))
                values.append(-row.sampling.frequency_penalty - (row.sampling.presence_penalty if is_first else 0.0))
        if places:
            which, columns, token_ids = on_device(self._device, places).unbind(1)
            ids[which, columns] = token_ids
            added[which, columns] = on_device(self._device, values, torch.float32)

    def _append_unknown(self, rows: list[SamplingRow], last_ids: torch.Tensor) -> None:
        """Adds tokens that the host has not seen, from where the step before left them."""
        samplings = [row.sampling for row in rows]
        numbers = [
            [self._slots[row.seq_id].index, len(row.token_ids) - 1, row.source, row.num_prompt_tokens] for row in rows
        ]
        slots, columns, sources, firsts = on_device(self._device, numbers).unbind(1)
        penalties = [[s.frequency_penalty, s.presence_penalty] for s in samplings]
        frequency, presence = on_device(self._device, penalties, torch.float32).unbind(1)
        ids = last_ids[sources]
        places = torch.arange(max(len(row.token_ids) for row in rows), device=self._device)
        is_output = (places >= firsts[:, None]) & (places < columns[:, None])
        is_repeated = ((self._ids[slots, : len(places)] == ids[:, None]) & is_output).any(1)
        self._ids[slots, columns] = ids
        self._added[slots, columns] = -frequency - torch.where(is_repeated, 0.0, presence)

    def _evict_for(self, rows: list[SamplingRow]) -> None:
        """Makes room: preempted sequences keep their history until somebody running needs its place."""
        running = {row.seq_id for row in rows}
        if len(running - self._slots.keys()) > len(self._free):
            self.forget([seq_id for seq_id in self._slots if seq_id not in running])

    def _start(self, row: SamplingRow) -> _Slot:
        slot = _Slot(self._free.pop(), row.num_prompt_tokens, row.num_prompt_tokens)
        self._slots[row.seq_id] = slot
        self._ids[slot.index].fill_(row.token_ids[0])
        self._added[slot.index].zero_()
        prompt = row.token_ids[: row.num_prompt_tokens]
        self._ids[slot.index, : len(prompt)] = on_device(self._device, prompt)
        return slot


@dataclass(slots=True)
class _Slot:
    """Where a sequence's history is, how long it is, and which ids its output has had.

    The device's row has `length` tokens; the host knew `num_known` of them when it last looked.
    """

    index: int
    length: int
    num_known: int
    seen: set[int] = field(default_factory=set)


def _has_penalty(sampling: SamplingParams) -> bool:
    return bool(sampling.repetition_penalty != 1.0 or sampling.frequency_penalty or sampling.presence_penalty)
