"""Records steps as CUDA graphs, ascending in size, and holds each replay to the numbers of the step itself.

Everything but the recording itself runs on a CPU too, for tests.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterable
from collections.abc import Sequence as AbstractSequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch

from model.backends.base import StepContext
from model.backends.cuda.device_faults import one_line, relative_error, require_living_device
from model.distributed.ranks import OutOfStepError

logger = logging.getLogger(__name__)

# Recording stops after this; sizes it did not come to are launched kernel by kernel.
MAX_CAPTURE_S = 90.0

# The kernels and numbers are the same, but a library may choose another algorithm while it is recorded.
_MAX_REPLAY_ERROR = 0.02

Size = TypeVar("Size", bound=Hashable)


class Recorder(Protocol):
    """Records work on the device."""

    def record(self, run: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        """Runs something, and records it.

        Returns:
            what repeats it, and its result, which every repetition overwrites.
        """
        ...

    def mark(self) -> Callable[[], None]:
        """Returns what waits until the work launched so far is done."""
        ...


class CudaRecorder:
    """Records CUDA graphs, all in one pool of memory: no two of them run at a time."""

    def __init__(self) -> None:
        self._stream: Any = None
        self._pool: Any = None

    def record(self, run: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        """See `Recorder`."""
        if self._stream is None:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            run()  # compiles kernels, and lets libraries make what they may not make while recording
        torch.cuda.current_stream().wait_stream(self._stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                output = run()
        except BaseException:
            # Torch's random numbers on the device stay in the state of a capture that failed, until one succeeds.
            with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=self._stream):
                torch.zeros(1, device="cuda")
            raise
        self._pool = graph.pool()
        return graph.replay, output

    def mark(self) -> Callable[[], None]:
        """See `Recorder`."""
        event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        wait: Callable[[], None] = event.synchronize
        return wait


class NoRecorder:
    """Stands for a recorder where nothing is recorded: on a device that finishes work at once."""

    def record(self, run: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        """See `Recorder`; there is nothing to record with."""
        raise RuntimeError("nothing can be recorded on this device")

    def mark(self) -> Callable[[], None]:
        """See `Recorder`."""
        return lambda: None


class Recordings(Generic[Size]):
    """Recorded steps by their size.

    Args:
        recorder: records them.
        context: shared by all steps.
        what: names the kind of steps, for the log.

    Attributes:
        sizes: sizes that were recorded, in the order of recording.
    """

    def __init__(self, recorder: Recorder, context: StepContext, what: str) -> None:
        self._recorder = recorder
        self._context = context
        self._what = what
        self._graphs: dict[Size, tuple[Callable[[], None], torch.Tensor]] = {}
        self.sizes: list[Size] = []

    def record_all(
        self,
        sizes: Iterable[Size],
        run: Callable[[Size], torch.Tensor],
        set_numbers: Callable[[Size, bool], int],
    ) -> None:
        """Records ascending sizes, as many as time and memory allow; none at all if any goes wrong.

        Args:
            sizes: the smallest first.
            run: runs a step of a size; returns its result, a row for each of its rows.
            set_numbers: lays out a step of a size, without any sequence or with some; returns how many rows they have.

        Raises:
            BrokenDeviceError: nothing works on the device any more.
            OutOfStepError: other ranks have recorded what this one cannot.
        """
        started = time.monotonic()
        for size in sizes:
            is_late = bool(self._graphs) and time.monotonic() - started > MAX_CAPTURE_S
            if self._context.is_on_any_rank(is_late):
                logger.warning("recording %s took too long; those of size %s and more have none", self._what, size)
                break
            try:
                set_numbers(size, False)
                self._graphs[size] = self._recorder.record(lambda size=size: run(size))  # type: ignore[misc]
                self._check_replay(size, run, set_numbers(size, True))
            except Exception as error:
                self._give_up(size, error)
                break
        self.sizes = list(self._graphs)
        logger.info("recorded %s of sizes %s in %.1f s", self._what, self.sizes, time.monotonic() - started)

    def _give_up(self, size: Size, error: Exception) -> None:
        """Keeps the smaller sizes if a size found no memory, and none if it failed otherwise."""
        if self._context.any_rank is not None:  # the others are still at it, or have it
            raise out_of_step(f"{self._what} of size {size}", error) from error
        if isinstance(error, torch.OutOfMemoryError):
            self._graphs.pop(size, None)
            logger.warning("no memory to record %s of size %s and more", self._what, size)
            return
        self._graphs.clear()
        require_living_device(self._context.cache.data.device, error)
        logger.warning(
            "%s of size %s cannot be recorded, so none is; they run as any other: %s",
            self._what,
            size,
            one_line(error),
            exc_info=logger.isEnabledFor(logging.DEBUG),
        )

    def _check_replay(self, size: Size, run: Callable[[Size], torch.Tensor], num_rows: int) -> None:
        """Replays a step on the numbers that lie there, and runs it as any other.

        Raises:
            RuntimeError: the two disagree.
        """
        found = self.replay(size)[:num_rows].clone()
        error = relative_error(found, run(size)[:num_rows])
        if not error <= _MAX_REPLAY_ERROR:
            raise RuntimeError(f"a replayed step is off by {error:.3g} of its largest number")

    def replay(self, size: Size) -> torch.Tensor:
        """Repeats a recorded step and returns its result, which the next replay overwrites."""
        replay, result = self._graphs[size]
        replay()
        return result


def out_of_step(what: str, error: Exception) -> OutOfStepError:
    """Returns the error to raise where a rank cannot record what the others do."""
    return OutOfStepError(
        f"{what} cannot be recorded on every rank ({one_line(error)}); start with --no-cuda-graphs"
    )


def sizes_up_to(highest: int, sizes: AbstractSequence[int]) -> list[int]:
    """Returns the sizes below the highest, and the highest."""
    return [*(size for size in sizes if size < highest), highest]


class StepNumbers:
    """The numbers of a step in a fixed place on the device, filled by a single copy from one of two host buffers.

    Those take turns, because the copy of the step before may not have begun when the next one is prepared.

    Args:
        capacity: the most numbers of a step.
        device: gets the numbers.
        mark: returns what waits until the work launched so far is done.

    Attributes:
        on_device: [capacity] int32.
    """

    def __init__(self, capacity: int, device: torch.device, mark: Callable[[], Callable[[], None]]) -> None:
        self.on_device = torch.zeros(capacity, dtype=torch.int32, device=device)
        self._mark = mark
        self._staging = [torch.zeros(capacity, dtype=torch.int32) for _ in range(2)]
        if device.type == "cuda":
            self._staging = [buffer.pin_memory() for buffer in self._staging]
        self._is_free: list[Callable[[], None]] = [lambda: None, lambda: None]
        self._turn = 0

    def prepare(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Returns the host buffer whose turn it is, once it is free; what it held before is still in it."""
        self._is_free[self._turn]()
        return self._staging[self._turn].numpy()

    def send(self, count: int) -> None:
        """Copies the first numbers of the buffer to the device, in the order of the stream."""
        self.on_device[:count].copy_(self._staging[self._turn][:count], non_blocking=True)
        self._is_free[self._turn] = self._mark()
        self._turn = 1 - self._turn
