"""Stand-ins for what a CUDA device does: graphs that are none, and the backend on a CPU."""

from __future__ import annotations

from typing import Any

import torch

from model.backends.cuda.backend import CudaBackend
from model.backends.cuda.steps.angles import Angles
from tests.support.random_attention import CONFIG

CPU = torch.device("cpu")
ANGLES = Angles.make(CONFIG, 60, CPU)


class FakeRecorder:
    """A graph that runs its work anew at each replay, into the result of the first time."""

    def __init__(self) -> None:
        self.num_marks = 0
        self.num_waits = 0
        self.replayed: list[int] = []

    def record(self, run: Any) -> Any:
        output = run()

        def replay() -> None:
            self.replayed.append(len(output))
            output.copy_(run())

        return replay, output

    def mark(self) -> Any:
        self.num_marks += 1

        def wait() -> None:
            self.num_waits += 1

        return wait


class FailingRecorder(FakeRecorder):
    """Cannot record steps of more than some sequences."""

    def __init__(self, error: Exception, max_rows: int) -> None:
        super().__init__()
        self.error = error
        self.max_rows = max_rows

    def record(self, run: Any) -> Any:
        if len(run()) > self.max_rows:
            raise self.error
        return super().record(run)


class InterpretedBackend(CudaBackend):
    """The CUDA backend on a CPU, with graphs that are none."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.recorder = FakeRecorder()
        self._recorder = self.recorder  # type: ignore[assignment]
