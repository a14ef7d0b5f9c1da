"""Which guesses a step should try: as many as cost less than they are likely to gain.

A step of few rows takes as long as one of a single row, for reading the weights is what takes its time. So rows that
check guesses are nearly free while few sequences run, and stop to be as more do. It must not know how a guess is
checked: what is wrong costs a row, never a token.

Pure: the standard library and other pure files of `model`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from model.scheduling.drafting import Drafter, TextIndex
from model.scheduling.sequence import Sequence

# The most tokens guessed ahead for a sequence.
MAX_DRAFT_TOKENS = 8

# A step with guesses should be so much better than one without: measured times and chances are not exact.
_LEAST_GAIN = 1.03


class RowCosts(NamedTuple):
    """What steps of some numbers of rows took when it was measured.

    Attributes:
        num_rows: numbers of rows that were tried, growing from 1 on.
        seconds: time of a step with each of these numbers and hardly any context.
        key_s: time that each position of a row's context adds.
    """

    num_rows: tuple[int, ...]
    seconds: tuple[float, ...]
    key_s: float

    @property
    def max_num_rows(self) -> int:
        """Beyond this many nothing is known, and nothing is gained."""
        return self.num_rows[-1]

    def step_s(self, num_rows: int, num_keys: int) -> float:
        """Returns how long a step takes.

        Args:
            num_rows: a number from 1 to `max_num_rows`.
            num_keys: positions of all rows' contexts together.
        """
        upper = next(i for i, number in enumerate(self.num_rows) if number >= num_rows)
        seconds = self.seconds[upper]
        if num_rows < self.num_rows[upper]:
            below, above = self.num_rows[upper - 1], self.num_rows[upper]
            share = (num_rows - below) / (above - below)
            seconds = self.seconds[upper - 1] * (1 - share) + seconds * share
        return seconds + self.key_s * num_keys


class Speculator:
    """Guesses for all sequences.

    Args:
        costs: times of steps on this machine with this model.
        vocab_size: ids from there on do not exist, whoever expects them.
    """

    def __init__(self, costs: RowCosts, vocab_size: int) -> None:
        self._costs = costs
        self._vocab_size = vocab_size
        self._drafters: dict[int, Drafter] = {}
        self.num_drafts_total = 0
        self.num_draft_tokens_total = 0
        self.num_accepted_tokens_total = 0

    @property
    def max_num_rows(self) -> int:
        """Nothing is guessed in steps of so many sequences or more."""
        return self._costs.max_num_rows

    def start(self, seqs: Iterable[Sequence], prompt_ids: list[int], prediction_ids: list[int]) -> None:
        """Takes in the choices of one prompt; `prediction_ids` is the output that the client expects, if any."""
        prompt = TextIndex(prompt_ids)
        prediction = TextIndex(prediction_ids) if prediction_ids else None
        for seq in seqs:
            self._drafters[seq.seq_id] = Drafter(seq.token_ids, prompt, prediction)

    def forget(self, seq_ids: Iterable[int]) -> None:
        """Drops sequences that have ended; unknown ids are ignored."""
        for seq_id in seq_ids:
            self._drafters.pop(seq_id, None)

    def num_newly_expected(self, seq_id: int) -> int:
        """Returns how many tokens have come as they were expected to since this was asked last, tried or not."""
        drafter = self._drafters.get(seq_id)
        if drafter is None:
            return 0
        num_before = drafter.num_expected_tokens
        drafter.catch_up()
        return drafter.num_expected_tokens - num_before

    def draft(
        self, rooms: Mapping[Sequence, int], max_num_rows: int, forced: Mapping[int, list[int]]
    ) -> dict[int, list[int]]:
        """Chooses the guesses for a step in which nothing but decodes runs.

        Args:
            rooms: all sequences of the step, and how many tokens more than one each may get.
            max_num_rows: the most rows of the step.
            forced: tokens that a sequence's grammar asks for next, by id.

        Returns:
            guessed tokens by sequence, for those that have some.
        """
        num_seqs = len(rooms)
        max_num_rows = min(max_num_rows, self._costs.max_num_rows)
        if num_seqs >= max_num_rows:
            return {}
        tokens: dict[int, list[int]] = {}
        offers: list[tuple[float, int, int]] = []
        num_keys = 0
        for seq, room in rooms.items():
            num_keys += seq.num_tokens
            drafter = self._drafters.get(seq.seq_id)
            if drafter is None or room < 1:
                continue
            draft = drafter.draft(min(room, MAX_DRAFT_TOKENS), forced.get(seq.seq_id, []))
            tokens[seq.seq_id] = self._possible(draft.token_ids, seq.sampling.ending_token_ids)
            offers += [(chance, seq.seq_id, seq.num_tokens) for chance in draft.chances[: len(tokens[seq.seq_id])]]
        offers.sort(key=lambda offer: -offer[0])  # stable: of one sequence, the first tokens come first
        num_taken = self._num_worth_while(offers[: max_num_rows - num_seqs], num_seqs, num_keys)
        counts: dict[int, int] = {}
        for _, seq_id, _ in offers[:num_taken]:
            counts[seq_id] = counts.get(seq_id, 0) + 1
        return {seq_id: tokens[seq_id][:count] for seq_id, count in counts.items()}

    def _num_worth_while(self, offers: list[tuple[float, int, int]], num_seqs: int, num_keys: int) -> int:
        """How many of the likeliest guesses make the most tokens a second."""
        if not offers:
            return 0
        num_tokens = float(num_seqs)
        best = _LEAST_GAIN * num_tokens / self._costs.step_s(num_seqs, num_keys)
        num_taken = 0
        for i, (chance, _, context_len) in enumerate(offers, 1):
            num_tokens += chance
            num_keys += context_len
            rate = num_tokens / self._costs.step_s(num_seqs + i, num_keys)
            if rate > best:
                best, num_taken = rate, i
        return num_taken

    def note(self, num_draft_tokens: int, num_accepted_tokens: int) -> None:
        """Takes note of what became of a sequence's guesses."""
        self.num_drafts_total += 1
        self.num_draft_tokens_total += num_draft_tokens
        self.num_accepted_tokens_total += num_accepted_tokens

    def _possible(self, token_ids: list[int], ending_token_ids: tuple[int, ...]) -> list[int]:
        """Guesses end before a token that would end the sequence: it comes by itself, and nothing comes after it."""
        for i, token_id in enumerate(token_ids):
            if token_id in ending_token_ids or token_id >= self._vocab_size:
                return token_ids[:i]
        return token_ids
