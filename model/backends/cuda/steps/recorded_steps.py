"""The part of the CUDA backend that records steps, and launches what it cannot record."""

from __future__ import annotations

import functools
import logging

import torch

from model.backends.base import StepContext
from model.backends.cuda.device_faults import BrokenDeviceError, one_line, require_living_device
from model.backends.cuda.low_rank import plan_adapter_table
from model.backends.cuda.notes import Notes
from model.backends.cuda.operations import DECODES_NEED, PROMPTS_NEED, Operations
from model.backends.cuda.self_check.check import noted_fault
from model.backends.cuda.steps.angles import Angles, angle_table_bytes
from model.backends.cuda.steps.batch_builder import BatchBuilder
from model.backends.cuda.steps.decode_graphs import CudaDecodeGraphs
from model.backends.cuda.steps.mixed_steps import CudaSteps
from model.backends.cuda.steps.recording import NoRecorder, Recorder, out_of_step
from model.contract.config import ModelConfig
from model.distributed.ranks import OutOfStepError

logger = logging.getLogger(__name__)

# The name of recording among the kernels' names in the notes.
_RECORDING = "recording of decode steps"


class RecordedSteps:
    """The methods of the CUDA backend that make steps; see `Backend`.

    Attributes:
        device: the device that runs the steps.
        operations: kernels, or what stands in for them.
    """

    device: torch.device
    operations: Operations
    _notes: Notes
    _dtype: torch.dtype
    _batch_invariant: bool
    _recorder: Recorder | None = None
    _angles: Angles | None = None

    def step_table_bytes(self, config: ModelConfig, max_num_seqs: int, max_model_len: int, block_size: int) -> int:
        """See `Backend`. Rotary angles, and block tables of decode steps, of those with adapters and of all others."""
        block_table_bytes = 4 * max_num_seqs * -(-max_model_len // block_size)
        return angle_table_bytes(config, max_model_len) + 3 * block_table_bytes

    def capture_decode(self, context: StepContext, *, with_adapters: bool = False) -> CudaDecodeGraphs | None:
        """See `Backend`."""
        is_hindered = self._recorder is None or self._cannot_record("decode steps", DECODES_NEED)
        if context.is_on_any_rank(is_hindered) or self._recorder is None:
            return None
        try:
            return CudaDecodeGraphs(self._builder(context), self._recorder, with_adapters=with_adapters)
        except BrokenDeviceError as error:
            raise noted_fault(self._notes, _RECORDING, error) from error
        except OutOfStepError:
            raise
        except Exception as error:  # its own tables may not fit
            try:
                require_living_device(self.device, error)
            except BrokenDeviceError as broken:
                raise noted_fault(self._notes, _RECORDING, broken) from error
            if context.any_rank is not None:  # the others go on recording, and ask about each size
                raise out_of_step("decode steps", error) from error
            logger.warning("decode steps are not recorded; they run as any other: %s", one_line(error))
            return None

    def make_steps(self, context: StepContext, *, is_recorded: bool = True) -> CudaSteps | None:
        """See `Backend`."""
        is_recorded = is_recorded and self._recorder is not None
        is_recorded = is_recorded and not self._cannot_record("steps with prompts", PROMPTS_NEED)
        is_recorded = not context.is_on_any_rank(not is_recorded)
        recorder = self._recorder or NoRecorder()
        plan_adapters = functools.partial(plan_adapter_table, device=self.device)
        try:
            return CudaSteps(self._builder(context), recorder, plan_adapters, is_recorded=is_recorded)
        except BrokenDeviceError as error:
            raise noted_fault(self._notes, _RECORDING, error) from error
        except torch.OutOfMemoryError as error:
            if context.any_rank is not None:
                raise
            logger.warning("no memory to lay steps out on the device; that is done on the host: %s", one_line(error))
            return None

    def _builder(self, context: StepContext) -> BatchBuilder:
        if self._angles is None:
            self._angles = Angles.make(context.config, context.max_model_len, self.device)
        make_inputs = self.operations["make_decode_inputs"]
        return BatchBuilder(context, self._angles, self._dtype, make_inputs, self._batch_invariant)

    def _cannot_record(self, what: str, needed: tuple[str, ...]) -> bool:
        """Returns whether something known forbids recording such steps, and logs it."""
        replaced = [name for name in needed if name in self.operations.replaced]
        reason = f"torch does the work of {', '.join(replaced)}" if replaced else self._notes.read("faults", _RECORDING)
        if reason:
            logger.warning("%s are not recorded; they are launched kernel by kernel: %s", what, reason)
        return bool(reason)
