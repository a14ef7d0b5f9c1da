"""Drawing tokens from the logits of recorded decode steps, recorded too.

Its dozen small kernels take the device some 70 us and Python, on a host that is not the fastest, some 400: longer than
a small model's step leaves it. Penalties, masks and biases change the logits where they are, so they need not know.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from collections.abc import Sequence as AlignedList
from typing import NamedTuple

import numpy as np
import torch

from model.backends.cuda.attention_plan import ALIGNMENT
from model.backends.cuda.device_faults import one_line, require_living_device
from model.backends.cuda.kernels.sampling import RowFilters
from model.backends.cuda.recording import Recorder, StepNumbers
from model.sampling.sampling_row import SamplingRow, uniform

logger = logging.getLogger(__name__)

_NUM_COLUMNS = len(RowFilters._fields)


class _Draw(NamedTuple):
    """One recorded draw.

    Attributes:
        replay: repeats it.
        result: [2, B] int64, ids and whether each row was of numbers.
    """

    replay: Callable[[], None]
    result: torch.Tensor


class RecordedDraws:
    """Draws for the rows of recorded decode steps, by where their logits are.

    Args:
        sample_rows: the kernels' function.
        recorder: of the device.
        max_num_rows: of a step.
        device: of the logits.
    """

    def __init__(
        self,
        sample_rows: Callable[..., tuple[torch.Tensor, torch.Tensor]],
        recorder: Recorder,
        max_num_rows: int,
        device: torch.device,
    ) -> None:
        self._sample_rows = sample_rows
        self._recorder = recorder
        self._staged = StepNumbers(_NUM_COLUMNS * _aligned(max_num_rows), device, recorder.mark)
        self._draws: dict[tuple[int, bool], _Draw] = {}
        self._num_rows: dict[int, int] = {}

    def record(self, all_logits: Iterable[torch.Tensor]) -> None:
        """Records a draw from each of these, with top_k and without; what cannot be recorded is launched as before."""
        for logits in all_logits:
            try:
                for has_top_k in (False, True):
                    draw = _Draw(*self._recorder.record(lambda x=logits, k=has_top_k: self._draw(x, k)))  # type: ignore[misc]
                    self._draws[logits.data_ptr(), has_top_k] = draw
            except Exception as error:
                require_living_device(logits.device, error)
                logger.warning("draws of %d rows cannot be recorded: %s", len(logits), one_line(error))
                return
            self._num_rows[logits.data_ptr()] = len(logits)

    def knows(self, logits: torch.Tensor) -> bool:
        """Whether these are the first rows of logits that a draw was recorded for."""
        return logits.data_ptr() in self._num_rows

    def run(self, logits: torch.Tensor, rows: AlignedList[SamplingRow]) -> tuple[torch.Tensor, torch.Tensor]:
        """Picks a token for each row, as `sample_rows` does."""
        num_rows = self._num_rows[logits.data_ptr()]
        stride = _aligned(num_rows)
        columns = self._staged.prepare()[: _NUM_COLUMNS * stride].reshape(_NUM_COLUMNS, stride)
        columns[:] = 0  # rows to spare are greedy
        numbers = columns.view(np.float32)
        top_k, temperature, top_p, min_p, draws = zip(*map(_filters, rows), strict=True)
        columns[1, : len(rows)] = top_k
        for column, values in ((0, temperature), (2, top_p), (3, min_p), (4, draws)):
            numbers[column, : len(rows)] = values
        self._staged.send(_NUM_COLUMNS * stride)
        draw = self._draws[logits.data_ptr(), any(top_k)]
        draw.replay()
        ids, is_valid = draw.result[:, : len(rows)].clone()  # the next replay comes before these are read
        return ids, is_valid.bool()

    def _draw(self, logits: torch.Tensor, has_top_k: bool) -> torch.Tensor:
        """What is recorded, from filters in a fixed place."""
        stride = _aligned(len(logits))
        columns = self._staged.on_device[: _NUM_COLUMNS * stride].view(_NUM_COLUMNS, stride)[:, : len(logits)]
        temperature, _, top_p, min_p, draws = columns.view(torch.float32).unbind(0)
        filters = RowFilters(temperature, columns[1], top_p, min_p, draws)
        ids, is_valid = self._sample_rows(logits, filters, has_random=True, has_top_k=has_top_k, has_top_p=True)
        return torch.stack([ids, is_valid.to(torch.int64)])


def _filters(row: SamplingRow) -> tuple[int, float, float, float, float]:
    sampling = row.sampling
    if sampling.temperature <= 0:
        return 0, 0.0, 1.0, 0.0, 0.0
    draw = uniform(row.stream_key, row.num_output_tokens)
    return sampling.top_k, sampling.temperature, sampling.top_p, sampling.min_p, draw


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
