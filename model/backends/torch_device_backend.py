"""torch's operations on a device that our kernels do not serve: an older GPU, another maker's, or one without Triton.

They are exact, much faster than a CPU, and several times slower than the kernels are where they run. A step is many
small launches, so attention gathers the keys of many sequences for few large operations.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence

import torch
import torch.nn.functional as F

from model.backends.base import LinearKernel
from model.backends.memory import available_device_bytes, measure_step_bytes
from model.backends.torch_backend import TorchBackend, require_known_dtype
from model.backends.torch_quantized import TorchGroupedLinear, make_torch_gptq_linear
from model.backends.weights import GPTQTensors, GroupedWeight
from model.contract.errors import ConfigError
from model.sampling.sampling_row import SamplingRow
from model.sampling.torch_sampling import sample_tokens

_MAX_NUM_BATCHED_TOKENS = 4096


class TorchDeviceBackend(TorchBackend):
    """Implements `Backend` with torch alone, for anything but a CPU.

    Args:
        device: any device that torch knows.
        has_bfloat16: whether the device computes in bfloat16 by itself.
    """

    def __init__(self, device: torch.device, *, has_bfloat16: bool) -> None:
        super().__init__(device, own_kernels=False)
        self._has_bfloat16 = has_bfloat16
        if device.type == "mps":  # it has no float64, in which tokens are drawn
            self.sample_tokens = _sample_on_the_host
        if device.type == "cuda":
            torch.cuda.set_device(device)
            # Partial sums of split products stay float32.
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False

    def resolve_dtype(self, requested: str, declared: str | None) -> torch.dtype:
        """See `Backend`. float16 where the device lacks bfloat16: sums of the residual stream are float32 anyway."""
        if requested == "bfloat16" and not self._has_bfloat16:
            raise ConfigError(f"--dtype bfloat16: {self.device} does not compute in it; use float16 or float32")
        if requested != "auto":
            return require_known_dtype(requested)
        if declared in (None, "bfloat16"):
            return torch.bfloat16 if self._has_bfloat16 else torch.float16
        return require_known_dtype(declared)

    def available_memory_bytes(self, gpu_memory_utilization: float) -> int:
        """See `Backend`."""
        if self.device.type in ("cuda", "xpu"):
            return available_device_bytes(self.device, gpu_memory_utilization)
        if self.device.type == "mps":
            usable = int(torch.mps.recommended_max_memory() * gpu_memory_utilization)
            return max(0, usable - torch.mps.driver_allocated_memory())
        return super().available_memory_bytes(gpu_memory_utilization)

    def measure_step_bytes(self, run: Callable[[], object]) -> int:
        """See `Backend`."""
        return measure_step_bytes(self.device, run) if self.device.type in ("cuda", "xpu") else 0

    def release_memory(self) -> None:
        """See `Backend`."""
        if self.device.type != "cpu":
            getattr(torch, self.device.type).empty_cache()

    def set_num_threads(self, num_threads: int | None, weights_bytes: int) -> None:
        """See `Backend`. The CPU only prepares steps: one thread, unless told otherwise."""
        torch.set_num_threads(num_threads or 1)

    def default_max_num_batched_tokens(self) -> int:
        """See `Backend`."""
        return _MAX_NUM_BATCHED_TOKENS

    def default_max_step_ms(self) -> int:
        """See `Backend`. The largest step is short enough."""
        return 0

    def prepare_linear(
        self, weight: torch.Tensor, bias: torch.Tensor | None, *, wide_results: bool = False
    ) -> LinearKernel:
        """See `Backend`. torch's product as it is."""
        return lambda x: F.linear(x, weight, bias)

    def prepare_gptq_linear(
        self, weight: GPTQTensors, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> tuple[LinearKernel, int] | None:
        """See `Backend`. Stays quantised, and is expanded for each product."""
        return make_torch_gptq_linear(weight, bias, dtype)

    def prepare_grouped_linear(
        self, weight: GroupedWeight, bias: torch.Tensor | None, dtype: torch.dtype, *, wide_results: bool = False
    ) -> tuple[LinearKernel, int] | None:
        """See `Backend`. Stays quantised, and is expanded for each product."""
        linear = TorchGroupedLinear(weight, bias, dtype)
        return linear, linear.num_bytes


def _sample_on_the_host(logits: torch.Tensor, rows: AbstractSequence[SamplingRow]) -> tuple[torch.Tensor, torch.Tensor]:
    """A `model.sampling.sampling_row.SampleTokens` for devices without float64."""
    ids, is_valid = sample_tokens(logits.cpu(), rows)
    return ids.to(logits.device), is_valid.to(logits.device)
