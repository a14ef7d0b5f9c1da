"""Guesses how a sequence goes on, from what it has said before and from what its client expects it to say.

It exists so that guessing is plain arithmetic on token ids. Whether a guess is worth its place in a step is for
`speculation` to decide; whether it was right, for the model.

Pure: the standard library.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence as AbstractSequence
from typing import NamedTuple

# Shorter ends of a text say too little; of longer ones so many tokens are looked up, and the rest compared.
_KEY_TOKENS = 3
_SHORT_KEY_TOKENS = 2
# So many of the last places with the same key are compared, so many tokens back.
_MAX_CANDIDATES = 8
_MAX_COMPARED_TOKENS = 32
_KEY_BITS = 21

# Guesses are told apart by how many tokens before them were equal: at most 1, 2, 4, 8, 16, or more. At most 1 is behind
# a token that came differently, as after a small change in a copied text. The last kind is what a grammar asks for.
_KINDS = (2, 3, 5, 9, 17)
_FORCED = len(_KINDS) + 1
# (right, made) that every request begins with, of each kind.
_PRIORS = ((0.5, 2.0), (0.6, 2.0), (1.0, 2.0), (1.4, 2.0), (1.6, 2.0), (1.8, 2.0), (1.8, 2.0))
# Older guesses count for less: beyond so many both numbers are halved.
_MAX_GUESSES_COUNTED = 32.0

# A client that says what it expects is believed as if so many tokens before had been equal.
_EXPECTED_LENGTH = 8


class Draft(NamedTuple):
    """Guessed next tokens.

    Attributes:
        chances: for each token, how likely it and all before it are right; never growing.
    """

    token_ids: list[int]
    chances: list[float]


class TextIndex:
    """Where the last tokens of a text stood in it before.

    Args:
        token_ids: a list that may grow; it is not copied.
        start: places up to here are left out.
    """

    def __init__(self, token_ids: AbstractSequence[int], start: int = 0) -> None:
        self.token_ids = token_ids
        self._start = self._end = start
        self._last: dict[int, int] = {}  # by key, the place behind its last occurrence
        self._before: list[int] = []  # by place, the one before it with the same key
        self._last_short: dict[int, int] = {}

    def extend_to(self, end: int) -> None:
        """Takes in the places up to `end`: a place is where a token stands, or will, and its key is of those before."""
        ids, last, last_short = self.token_ids, self._last, self._last_short
        for place in range(self._end + 1, end + 1):
            before = -1
            if place >= _KEY_TOKENS:
                key = _key(ids, place)
                before = last.get(key, -1)
                last[key] = place
            if place >= _SHORT_KEY_TOKENS:
                last_short[_short_key(ids, place)] = place
            self._before.append(before)
        self._end = max(self._end, end)

    def find(self, token_ids: AbstractSequence[int], end: int) -> tuple[int, int]:
        """Finds the longest run of tokens that is equal to the end of a text.

        Args:
            token_ids: the text to find the end of; another one or the same.
            end: length of that text.

        Returns:
            the place behind the run and the run's length; (-1, 0) where there is none.
        """
        best, longest = -1, 0
        if end >= _KEY_TOKENS:
            place = self._last.get(_key(token_ids, end), -1)
            for _ in range(_MAX_CANDIDATES):
                if place < 0:
                    break
                length = self._equal_run(token_ids, end, place)
                if length > longest:
                    best, longest = place, length
                place = self._before[place - self._start - 1]
        if best < 0 and end >= _SHORT_KEY_TOKENS:
            best = self._last_short.get(_short_key(token_ids, end), -1)
            longest = _SHORT_KEY_TOKENS if best >= 0 else 0
        return best, longest

    def _equal_run(self, token_ids: AbstractSequence[int], end: int, place: int) -> int:
        ids = self.token_ids
        most = min(end, place, _MAX_COMPARED_TOKENS)
        length = _KEY_TOKENS
        while length < most and token_ids[end - 1 - length] == ids[place - 1 - length]:
            length += 1
        return length


class Drafter:
    """Follows one sequence along texts that it may repeat.

    It guesses the next token wherever it can, whether or not the guess is tried on the device: so the tokens that come
    tell how much its guesses are worth, at no cost.

    Args:
        token_ids: prompt and output, a list that grows.
        prompt: index of the prompt; choices of a request share it, and it is filled when first needed.
        prediction: index of the output that the client expects, or None.

    Attributes:
        num_expected_tokens: output tokens that came as these texts alone made expect.
    """

    def __init__(self, token_ids: list[int], prompt: TextIndex, prediction: TextIndex | None = None) -> None:
        self._token_ids = token_ids
        self._prompt = prompt
        self._num_seen = len(prompt.token_ids)
        self._output = TextIndex(token_ids, self._num_seen - 1)
        self._prediction = prediction
        self._text: AbstractSequence[int] = token_ids
        self._place = -1  # in `_text`, of what is expected next
        self._length = 0
        self._forced: list[int] = []
        self._right = [right for right, _ in _PRIORS]
        self._made = [made for _, made in _PRIORS]
        self._is_new = True
        self.num_expected_tokens = 0

    def draft(self, max_tokens: int, forced: list[int]) -> Draft:
        """Guesses the next tokens, none where nothing is like the end of the sequence.

        Args:
            forced: tokens that a grammar asks for next, perhaps none; they go before all other guesses.
        """
        self.catch_up()
        self._forced = forced
        draft = Draft([], [])
        chance = 1.0
        for i in range(max_tokens):
            token_id = forced[i] if i < len(forced) else -1 if forced else self._expected(i, draft.token_ids)
            if token_id < 0:
                break
            chance *= self._chance(_FORCED if forced else _kind(self._length + i))
            draft.token_ids.append(token_id)
            draft.chances.append(chance)
        return draft

    def _expected(self, i: int, tokens: list[int]) -> int:
        """The token that is expected behind so many others, or -1."""
        place = self._place + i
        if self._place < 0:
            return -1
        if place < len(self._text):
            return self._text[place]
        if self._text is self._token_ids:  # it repeats itself: what is guessed is the text that goes on
            return tokens[place - len(self._text)]
        return -1

    def catch_up(self) -> None:
        """Looks at the tokens that have come since the last call."""
        if self._is_new:
            self._begin()
        for position in range(self._num_seen, len(self._token_ids)):
            self._take(position, self._token_ids[position])
        self._num_seen = len(self._token_ids)

    def _begin(self) -> None:
        self._is_new = False
        self._prompt.extend_to(self._num_seen - 1)
        if self._prediction is None:
            self._look_up(self._num_seen, -1)
            return
        self._prediction.extend_to(len(self._prediction.token_ids) - 1)
        self._text, self._place, self._length = self._prediction.token_ids, 0, _EXPECTED_LENGTH

    def _take(self, position: int, token_id: int) -> None:
        if self._forced:
            is_right = self._forced[0] == token_id
            self._count(_FORCED, is_right)
            self._forced = self._forced[1:] if is_right else []
        self._output.extend_to(position)
        expected = self._expected(0, [])
        if expected == token_id:
            self.num_expected_tokens += 1
            self._count(_kind(self._length), True)
            self._place += 1
            self._length += 1
            return
        behind = -1
        if expected >= 0:
            self._count(_kind(self._length), False)
            if self._length >= _KEY_TOKENS:
                behind = self._place + 1
        self._look_up(position + 1, behind)

    def _look_up(self, end: int, behind: int) -> None:
        """Finds the place to follow from here.

        Args:
            end: number of known tokens.
            behind: place where the text followed so far would go on if one token was exchanged, or -1.
        """
        texts = [self._prediction] if self._prediction is not None else []
        best, longest, text = -1, 0, self._text
        for index in (*texts, self._output, self._prompt):
            place, length = index.find(self._token_ids, end)
            if length > longest:
                best, longest = place, length
                text = index.token_ids if index is self._prediction else self._token_ids
        if 0 <= behind < len(self._text) and longest < _KEY_TOKENS:
            best, longest, text = behind, 0, self._text
        self._text, self._place, self._length = text, best, longest

    def _count(self, kind: int, is_right: bool) -> None:
        self._right[kind] += is_right
        self._made[kind] += 1
        if self._made[kind] > _MAX_GUESSES_COUNTED:
            self._right[kind] /= 2
            self._made[kind] /= 2

    def _chance(self, kind: int) -> float:
        return self._right[kind] / self._made[kind]


def _kind(length: int) -> int:
    return bisect_right(_KINDS, length)


def _short_key(ids: AbstractSequence[int], place: int) -> int:
    return ids[place - 2] << _KEY_BITS | ids[place - 1]


def _key(ids: AbstractSequence[int], place: int) -> int:
    return (ids[place - 3] << _KEY_BITS | ids[place - 2]) << _KEY_BITS | ids[place - 1]
