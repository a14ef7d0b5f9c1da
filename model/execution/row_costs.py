"""How long small steps take on this machine with this model: measured once, to know how many guesses cost little."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import accumulate

from model.scheduling.speculation import RowCosts

_NUM_ROWS = (1, 2, 4, 8, 16)
MAX_GUESSED_ROWS = _NUM_ROWS[-1]
_LONG_CONTEXT = 1024
# The faster of two steps counts: interruptions, and work done in the first of a kind, have nothing to do with rows.
_NUM_REPEATS = 2
# Where more rows take so many times as long as one they are not nearly free, and no more are tried.
_TOO_LONG = 3.0


def measure_row_costs(run: Callable[[int, int], object], max_model_len: int) -> RowCosts:
    """Measures steps of few rows.

    Args:
        run: runs a step, given the number of rows of one token each and the number of tokens before them.
        max_model_len: the most tokens of a sequence.
    """

    def seconds(num_rows: int, context_len: int) -> float:
        best = float("inf")
        for _ in range(_NUM_REPEATS):
            started = time.perf_counter()
            run(num_rows, context_len)
            best = min(best, time.perf_counter() - started)
        return best

    measured = [seconds(1, 0)]
    for num_rows in _NUM_ROWS[1:]:
        measured.append(seconds(num_rows, 0))
        if measured[-1] > _TOO_LONG * min(measured):
            break
    # Fewer rows take no longer than more: where they seemed to, something else held them up.
    measured = list(accumulate(reversed(measured), min))[::-1]
    context_len = max(1, min(_LONG_CONTEXT, max_model_len) - 1)
    key_s = (seconds(1, context_len) - measured[0]) / context_len
    return RowCosts(_NUM_ROWS[: len(measured)], tuple(measured), max(0.0, key_s))
