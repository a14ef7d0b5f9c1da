"""Lays a planned batch out as rows: which tokens go through the blocks, and which rows through the output layer."""

from __future__ import annotations

from model.execution.forward_batch import SequenceSpan
from model.scheduling.sequence import ScheduledSequence

# Prompt log-probabilities need logits of every position; this many rows of the vocabulary at a time. (More would be
# faster arithmetic, but arrays of over 32 MiB cost malloc more in page faults than that saves.)
LOGIT_ROWS_PER_PASS = 32


def spans_of(entry: ScheduledSequence, adapter_slot: int) -> list[SequenceSpan]:
    """Returns an entry's tokens, and each of its drafts as a decode of its own: computed as when its turn comes."""
    start = entry.start
    chunk = SequenceSpan(
        entry.token_ids[start : start + entry.num_tokens],
        start,
        entry.rope_alpha,
        entry.block_table,
        entry.num_tokens if entry.needs_prompt_logits else int(entry.needs_sampling),
        adapter_slot,
    )
    if not entry.draft_ids:
        return [chunk]
    drafts = [
        chunk._replace(token_ids=[token_id], start=entry.end + i) for i, token_id in enumerate(entry.draft_ids)
    ]
    return [chunk, *drafts]


def logit_rows(entries: list[ScheduledSequence]) -> tuple[dict[int, range], list[int]]:
    """Says what the rows with hidden states are for.

    Returns:
        by index of an entry whose prompt is scored, the rows before tokens that are known; and the rows to sample.
    """
    scored: dict[int, range] = {}
    sampled: list[int] = []
    row = 0
    for index, entry in enumerate(entries):
        if entry.needs_prompt_logits:
            scored[index] = range(row, row + min(entry.end, len(entry.token_ids) - 1) - entry.start)
            row += entry.num_tokens
        else:
            row += entry.needs_sampling + len(entry.draft_ids)
        if entry.needs_sampling:
            sampled += range(row - 1 - len(entry.draft_ids), row)
    return scored, sampled


def logit_passes(entries: list[ScheduledSequence]) -> list[list[int]]:
    """Returns the rows that go through the output layer together, in the order of the passes: scores, then samples."""
    scored, sampled = logit_rows(entries)
    passes = [
        list(rows[low : low + LOGIT_ROWS_PER_PASS])
        for rows in scored.values()
        for low in range(0, len(rows), LOGIT_ROWS_PER_PASS)
    ]
    return [*passes, sampled] if sampled else passes
