"""How many prompt tokens a step may compute while others wait for their next token.

It exists so that chunk sizes follow time: a step that carries decodes should end within a bound, on any machine, for
any model and context. It must not know which sequences these are, and reads no clock: the loop tells what steps took.

Pure: the standard library.
"""

from __future__ import annotations

from collections import deque
from statistics import median_high

# Where decodes alone take nearly as long as a step may, or longer, prompts get this part of their time on top.
_LEAST_SHARE = 0.25

# Of so many steps of a kind the times are remembered: one that something else held up is neither least nor median.
_NUM_DECODES_REMEMBERED = 3
_NUM_CHUNKS_REMEMBERED = 5

# Shorter chunks say little about the time of a token, unless they are as long as a chunk may be.
_MIN_MEASURED_TOKENS = 8


class PrefillBudget:
    """Learns what decodes and what a prompt token add to the time of a step.

    A step of d decodes and n prompt tokens takes about `decode_s[d] + n * token_s`; the first is measured in steps
    without prompts. Where it is guessed too low, `token_s` comes out too high, and steps still converge on the bound.

    Args:
        max_step_s: the bound; 0 is none.
    """

    def __init__(self, max_step_s: float) -> None:
        self.max_step_s = max_step_s
        self._decode_s: dict[int, deque[float]] = {}
        self._token_s: deque[float] = deque(maxlen=_NUM_CHUNKS_REMEMBERED)

    def max_tokens(self, num_decodes: int) -> int | None:
        """Returns how many prompt tokens a step may have, at least 1; None where nothing is known or asked for."""
        if not self.max_step_s or not self._token_s:
            return None
        decode_s = self._expected_decode_s(num_decodes)
        seconds = max(self.max_step_s - decode_s, _LEAST_SHARE * decode_s)
        return max(1, int(seconds / median_high(self._token_s)))

    def note(self, num_decodes: int, num_prompt_tokens: int, step_s: float) -> None:
        """Takes note of what a step took.

        Args:
            num_decodes: sequences that decoded in the step.
            num_prompt_tokens: tokens of all its chunks.
            step_s: seconds from its launch to its results.
        """
        if num_prompt_tokens == 0:
            self._decode_s.setdefault(num_decodes, deque(maxlen=_NUM_DECODES_REMEMBERED)).append(step_s)
        elif num_prompt_tokens >= min(_MIN_MEASURED_TOKENS, self.max_tokens(num_decodes) or 1):
            token_s = (step_s - self._expected_decode_s(num_decodes)) / num_prompt_tokens
            # Chunks grow to four times at most: decodes may have become faster than is known.
            least_s = median_high(self._token_s) / 4 if self._token_s else 1e-6
            self._token_s.append(max(token_s, least_s))

    def _expected_decode_s(self, num_decodes: int) -> float:
        """Of so many decodes, or of the next fewer that are known."""
        known = max((number for number in self._decode_s if number <= num_decodes), default=None)
        return 0.0 if known is None else min(self._decode_s[known])
