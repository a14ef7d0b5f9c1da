"""How many tokens of which sequences a step computes: one of each that goes on, then prompts in fair parts.

Pure: the standard library and other pure files of `model`.
"""

from __future__ import annotations

from collections.abc import Collection

from model.scheduling.callers import Caller, split
from model.scheduling.residents import Residents
from model.scheduling.sequence import Sequence


class StepPlan:
    """A step while it is planned.

    Args:
        residents: admit sequences, and preempt some for them.
        seqs: the running sequences that take part.
        preempted: running sequences that lost their blocks. Their callers get nobody admitted in this step: it would
            have been for nothing.
        late: ids of sequences that are left out.
        max_num_background: the most tokens that the background may have.
        num_admissible: the most sequences that may be admitted.
        max_running_per_caller: the most sequences of one caller that run; None is no limit.

    Attributes:
        tokens: how many tokens of each sequence, running ones before those that the plan admits.
    """

    def __init__(
        self,
        residents: Residents,
        seqs: list[Sequence],
        preempted: list[Sequence],
        *,
        late: Collection[int],
        max_num_background: int,
        num_admissible: int,
        max_running_per_caller: int | None,
    ) -> None:
        self.tokens = dict.fromkeys(seqs, 1)  # one each is safe from those before it
        self._residents = residents
        self._growing: dict[str, list[Sequence]] = {}  # by caller, those that have use for more than one token
        for seq in seqs:
            if len(seq.token_ids) - seq.num_computed_tokens > 1:
                self._growing.setdefault(seq.caller, []).append(seq)
        self._bereft = {seq.caller for seq in preempted}
        self._late = late
        self._num_left = 0
        self._num_left_background = max_num_background - sum([seq.is_background for seq in seqs])
        self._num_admissible = num_admissible
        self._max_running_per_caller = max_running_per_caller
        self._is_blocked = False  # nobody is admitted any more, for one whose turn it is does not fit

    @property
    def wants_more(self) -> bool:
        """Whether more tokens than one a sequence could be computed."""
        return bool(self._growing) or any(caller.waiting for caller in self._residents.callers)

    def share(self, num_tokens: int) -> None:
        """Gives more tokens to prompts: each caller's part on its own, then what somebody left."""
        self._num_left = num_tokens
        all_callers = self._residents.callers
        is_blocked = self._is_blocked = not all_callers.can_admit(self._residents.num_running)
        callers = [c for c in all_callers if c.name in self._growing or (c.waiting and not is_blocked)]
        if len(callers) < 2:
            for caller in callers:
                self._give_caller(caller, num_tokens)
            return
        first = [caller for caller in callers if not caller.is_background] or callers
        parts = dict.fromkeys(callers, 0)
        parts |= split(num_tokens, {caller: self._wanted(caller) for caller in first})
        callers = all_callers.in_turn(callers)
        for caller in callers:
            self._give_caller(caller, parts[caller])
        for caller in callers:
            self._give_caller(caller, self._num_left)

    def _wanted(self, caller: Caller) -> int:
        """Tokens that a caller could still have computed, at most those that are left."""
        num_tokens = 0
        for queue in (self._growing.get(caller.name, ()), caller.waiting):
            for seq in queue:
                num_tokens += seq.num_uncomputed_tokens - self.tokens.get(seq, 0)
                if num_tokens >= self._num_left:
                    return self._num_left
        return num_tokens

    def _give_caller(self, caller: Caller, num_tokens: int) -> None:
        """Gives tokens to prompts of one caller: to those under way, then to newly admitted ones."""
        if caller.is_background:
            num_tokens = min(num_tokens, self._num_left_background)
        growing = self._growing.setdefault(caller.name, [])
        for seq in growing:
            if seq in self.tokens:
                num_tokens -= self._give(seq, num_tokens)
        limit = self._max_running_per_caller
        while num_tokens > 0 and caller.waiting and not self._is_blocked and caller.name not in self._bereft:
            if limit is not None and len(caller.running) >= limit:
                break
            first = next((seq for seq in caller.waiting if seq.seq_id not in self._late), None)
            if first is None:
                break
            if self._num_admissible == 0 or not self._residents.admit(first, self._lose):
                self._is_blocked = True
                break
            self._num_admissible -= 1
            num_tokens -= self._give(first, num_tokens)
            growing.append(first)

    def _give(self, seq: Sequence, at_most: int) -> int:
        """Lets a sequence compute more of its tokens; returns how many more."""
        planned = self.tokens.get(seq, 0)
        num_tokens = min(at_most, seq.num_uncomputed_tokens - planned)
        self.tokens[seq] = planned + num_tokens
        self._num_left -= num_tokens
        if seq.is_background:
            self._num_left_background -= num_tokens
        return num_tokens

    def _lose(self, seq: Sequence) -> None:
        """Takes note that a sequence was preempted; what it would have computed is not given out again."""
        self.tokens.pop(seq, None)
        self._bereft.add(seq.caller)
