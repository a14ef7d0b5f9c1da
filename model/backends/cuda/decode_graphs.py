"""Decode steps as CUDA graphs: recorded once for some batch sizes, replayed without allocation or a word from the host.

A step of n sequences runs in the graph of the next batch size; its surplus rows have position -1: they attend to
nothing, write nothing to the cache, and their logits are not looked at. What a graph reads lies in fixed places: one
buffer on the device, filled by a single copy from one of two buffers on the host, which take turns because the copy of
the step before may not have begun when the next one is prepared.

Everything but the recording itself runs on a CPU too, so that tests can hold it to its word.
"""

from __future__ import annotations

import functools
import logging
import time
from array import array
from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from typing import Any, Protocol

import numpy as np
import torch

from model.backends.cuda.attention_plan import AttentionPlan
from model.backends.cuda.device_faults import one_line, relative_error, require_living_device
from model.backends.cuda.kernels.decode_attention import FIXED_SPLITS, DecodeRows, choose_num_splits
from model.backends.cuda.kernels.decode_inputs import NUM_FIELDS, AngleTables, DecodeInputs, make_decode_inputs
from model.backends.cuda.low_rank import AdapterTable
from model.contract.config import ModelConfig
from model.distributed.ranks import OutOfStepError
from model.execution.forward_batch import ForwardBatch, SequenceSpan, inverse_frequencies, query_scale
from model.execution.kv_cache import KVCache
from model.scheduling.sequence import UNKNOWN_TOKEN

logger = logging.getLogger(__name__)

_BATCH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)

# Recording stops here; batch sizes it did not come to run as any other step.
MAX_CAPTURE_S = 90.0

# The same kernels on the same numbers; a library may choose another algorithm while it is recorded.
_MAX_REPLAY_ERROR = 0.02

_UNUSED_ROW = (0, -1, 0, 0)


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


class CapturedDecodes:
    """Implements `model.backends.base.DecodeGraphs`.

    Args:
        step: the model, from a batch to logits [T, vocab_size] float32.
        config: of the checkpoint.
        cache: of all steps.
        last_ids: [max_num_seqs] int64, where every step leaves the ids it sampled.
        max_model_len: the longest sequence.
        recorder: of the device.
        make_inputs: `make_decode_inputs`, or what stands in for it.
        any_rank: see `Backend.capture_decode`.
        with_adapters: whether rows may have adapters: for each what theirs adds is worked out too.
        is_fixed: whether keys are cut into as many parts for every batch size.

    Attributes:
        batch_sizes: that were recorded, ascending.
    """

    def __init__(
        self,
        step: Callable[[ForwardBatch], torch.Tensor],
        config: ModelConfig,
        cache: KVCache,
        last_ids: torch.Tensor,
        max_model_len: int,
        recorder: Recorder,
        make_inputs: Callable[..., DecodeInputs] = make_decode_inputs,
        any_rank: Callable[[bool], bool] | None = None,
        with_adapters: bool = False,
        is_fixed: bool = False,
    ) -> None:
        started = time.monotonic()
        self._step = step
        self._cache = cache
        self._last_ids = last_ids
        self._max_model_len = max_model_len
        self._recorder = recorder
        self._make_inputs = make_inputs
        self._any_rank = any_rank
        self._is_fixed = is_fixed
        device = cache.data.device
        max_num_rows = min(len(last_ids), _BATCH_SIZES[-1])
        self._alpha_rows, self._angles = angle_tables(config, max_model_len, device)
        # The numbers of the rows, the slots of their adapters, then the block tables one after another.
        self._slot_start = max_num_rows * NUM_FIELDS
        self._with_adapters = with_adapters
        self._table_start = self._slot_start + max_num_rows
        capacity = self._table_start + max_num_rows * -(-max_model_len // cache.block_size)
        self._numbers = torch.zeros(capacity, dtype=torch.int32, device=device)
        self._staging = [torch.zeros(capacity, dtype=torch.int32) for _ in range(2)]
        if device.type == "cuda":
            self._staging = [buffer.pin_memory() for buffer in self._staging]
        self._is_free: list[Callable[[], None]] = [lambda: None, lambda: None]
        self._turn = 0
        self._graphs: dict[int, tuple[Callable[[], None], torch.Tensor]] = {}
        self._numbers[self._slot_start : self._table_start] = -1
        rows = self._numbers[: self._slot_start].view(-1, NUM_FIELDS)
        rows.copy_(torch.tensor(_UNUSED_ROW, dtype=torch.int32))
        self._record_all(_batch_sizes(max_num_rows), config.vocab_size)
        self.batch_sizes = sorted(self._graphs)
        logger.info("recorded decode steps of %s sequences in %.1f s", self.batch_sizes, time.monotonic() - started)

    def _record_all(self, batch_sizes: list[int], vocab_size: int) -> None:
        """Records ascending sizes, as many as time and memory allow; none at all if any goes wrong."""
        started = time.monotonic()
        for batch_size in batch_sizes:
            is_late = bool(self._graphs) and time.monotonic() - started > MAX_CAPTURE_S
            if is_late if self._any_rank is None else self._any_rank(is_late):
                logger.warning("recording decode steps took too long; those of %d and more have none", batch_size)
                return
            try:
                self._graphs[batch_size] = self._recorder.record(functools.partial(self._decode, batch_size))
                self._check_replay(batch_size, vocab_size)
            except Exception as error:
                if self._any_rank is not None:  # the others are still at it, or have it
                    message = f"decode steps of {batch_size} sequences cannot be recorded on every rank"
                    raise OutOfStepError(f"{message} ({one_line(error)}); start with --no-cuda-graphs") from error
                if isinstance(error, torch.OutOfMemoryError):
                    self._graphs.pop(batch_size, None)
                    logger.warning("no memory to record decode steps of %d sequences and more", batch_size)
                    return
                self._graphs.clear()
                require_living_device(self._cache.data.device, error)
                logger.warning(
                    "decode steps of %d sequences cannot be recorded, so none is; they run as any other: %s",
                    batch_size,
                    one_line(error),
                    exc_info=logger.isEnabledFor(logging.DEBUG),
                )
                return

    def _check_replay(self, batch_size: int, vocab_size: int) -> None:
        """Replays what was recorded on other numbers than it was recorded with, and runs the step as any other.

        Every row is a sequence's first token, in a block of its own of the cache, which nothing has been written to.

        Raises:
            RuntimeError: the two disagree.
        """
        num_rows = min(batch_size, self._cache.num_blocks)
        fields = [(row % vocab_size, 0, 0, row) for row in range(num_rows)]
        fields += [_UNUSED_ROW] * (batch_size - num_rows)
        self._numbers[: batch_size * NUM_FIELDS].copy_(torch.tensor(fields, dtype=torch.int32).flatten())
        self._numbers[self._table_start : self._table_start + num_rows].copy_(torch.arange(num_rows))
        replay, logits = self._graphs[batch_size]
        replay()
        error = relative_error(logits[:num_rows], self._decode(batch_size)[:num_rows])
        if not error <= _MAX_REPLAY_ERROR:
            raise RuntimeError(f"a replayed step is off by {error:.3g} of its largest number")

    @property
    def max_num_rows(self) -> int:
        """The most sequences of a step; 0 when there was no memory for any."""
        return max(self.batch_sizes, default=0)

    def _decode(self, batch_size: int) -> torch.Tensor:
        """What is recorded: the step, from the numbers in the fixed buffer to logits [batch_size, vocab_size]."""
        fields = self._numbers[: batch_size * NUM_FIELDS].view(batch_size, NUM_FIELDS)
        table = self._numbers[self._table_start :]
        inputs = self._make_inputs(fields, table, self._last_ids, self._angles, self._cache.block_size)
        rows = torch.arange(batch_size, dtype=torch.int32, device=fields.device)
        decodes = DecodeRows(rows, inputs.lengths, inputs.table_starts, table)
        num_heads = self._cache.data.shape[2]
        plan = AttentionPlan(
            cache=self._cache,
            decodes=decodes,
            num_splits=(
                FIXED_SPLITS if self._is_fixed else choose_num_splits(batch_size, num_heads, self._max_model_len)
            ),
            tiles=None,
        )
        return self._step(
            ForwardBatch(
                spans=(),
                token_ids=inputs.token_ids,
                cos=inputs.cos,
                sin=inputs.sin,
                query_scale=inputs.query_scale,
                slots=inputs.slots,
                logit_rows=rows,
                block_size=self._cache.block_size,
                attention_plan=plan,
                adapter_plan=AdapterTable(self._adapter_slots(batch_size), []) if self._with_adapters else None,
            )
        )

    def _adapter_slots(self, batch_size: int) -> torch.Tensor:
        return self._numbers[self._slot_start : self._slot_start + batch_size]

    def run(self, spans: AbstractSequence[SequenceSpan], sources: AbstractSequence[int]) -> torch.Tensor:
        """See `DecodeGraphs`."""
        batch_size = next(size for size in self.batch_sizes if size >= len(spans))
        fields, table = self._numbers_of(spans, sources)
        fields += _UNUSED_ROW * (batch_size - len(spans))
        staging = self._staging[self._turn]
        self._is_free[self._turn]()
        numbers = staging.numpy()
        numbers[: len(fields)] = fields
        slots = [span.adapter_slot for span in spans] + [-1] * (batch_size - len(spans))
        numbers[self._slot_start : self._slot_start + batch_size] = slots
        end = self._table_start + len(table)
        numbers[self._table_start : end] = np.frombuffer(table, dtype=np.int32)
        self._numbers[:end].copy_(staging[:end], non_blocking=True)
        self._is_free[self._turn] = self._recorder.mark()
        self._turn = 1 - self._turn
        replay, logits = self._graphs[batch_size]
        replay()
        return logits[: len(spans)]

    def _numbers_of(
        self, spans: AbstractSequence[SequenceSpan], sources: AbstractSequence[int]
    ) -> tuple[list[int], array[int]]:
        fields: list[int] = []
        table: array[int] = array("i")
        for span, source in zip(spans, sources, strict=True):
            token = span.token_ids[0]
            start = len(table)
            table.extend(span.block_table[: -(-span.context_len // self._cache.block_size)])
            fields += (-1 - source if token == UNKNOWN_TOKEN else token, span.start, self._alpha_row(span), start)
        return fields, table

    def _alpha_row(self, span: SequenceSpan) -> int:
        return self._alpha_rows[span.rope_alpha]


def angle_tables(config: ModelConfig, max_model_len: int, device: torch.device) -> tuple[dict[float, int], AngleTables]:
    """Angles of all positions for every alpha that a prompt may have, computed as a batch's own are.

    Returns:
        the row of each alpha, and the tables.
    """
    lengths = {1, max_model_len}
    length = config.seq_length
    while length < max_model_len:
        lengths.add(length + 1)
        length *= 2
    alphas = sorted({config.rope_alpha(n) for n in lengths})
    positions = torch.arange(max_model_len, dtype=torch.int64)
    angles = [positions.to(torch.float32)[:, None] * inverse_frequencies(config, alpha)[None] for alpha in alphas]
    tables = AngleTables(
        torch.stack([angle.cos() for angle in angles]).to(device),
        torch.stack([angle.sin() for angle in angles]).to(device),
        query_scale(positions, config).to(device),
    )
    return {alpha: row for row, alpha in enumerate(alphas)}, tables


def _batch_sizes(max_num_rows: int) -> list[int]:
    """The sizes to record, ascending; the last one holds `max_num_rows`."""
    return [*(size for size in _BATCH_SIZES if size < max_num_rows), max_num_rows]
