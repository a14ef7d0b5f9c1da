"""The operations that the backend runs: each a Triton kernel, or torch's own in its place."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from model.backends.cuda import torch_operations
from model.backends.cuda.device_faults import is_alive, is_recording, one_line
from model.backends.cuda.kernels.attention.decode_attention import decode_attention
from model.backends.cuda.kernels.attention.prefill_attention import prefill_attention
from model.backends.cuda.kernels.attention.rotary import rotate_and_cache
from model.backends.cuda.kernels.decode_inputs import make_decode_inputs
from model.backends.cuda.kernels.matmul.gptq_matmul import gptq_matmul
from model.backends.cuda.kernels.matmul.low_rank import add_low_rank
from model.backends.cuda.kernels.matmul.row_matmul import row_matmul
from model.backends.cuda.kernels.matmul.tile_matmul import tile_matmul
from model.backends.cuda.kernels.norm import rms_norm
from model.backends.cuda.kernels.sampling.sample_rows import sample_rows
from model.backends.cuda.kernels.silu_mul import silu_mul

logger = logging.getLogger(__name__)

Operation = Callable[..., Any]

# A product with a quantised weight is one function of three kernels, by the number of rows.
KERNELS: dict[str, Operation] = {
    "rms_norm": rms_norm,
    "silu_mul": silu_mul,
    "rotate_and_cache": rotate_and_cache,
    "decode_attention": decode_attention,
    "prefill_attention": prefill_attention,
    "make_decode_inputs": make_decode_inputs,
    "sample_rows": sample_rows,
    "row_matmul": row_matmul,
    "add_low_rank": add_low_rank,
    "tile_matmul": tile_matmul,
    "gptq_one_row": gptq_matmul,
    "gptq_few_rows": gptq_matmul,
    "gptq_many_rows": gptq_matmul,
}

# Without its kernel, sampling is left to model/sampling/torch_sampling.py, which is handed rows, not numbers.
TORCH: dict[str, Operation] = {
    "rms_norm": torch_operations.rms_norm,
    "silu_mul": torch_operations.silu_mul,
    "rotate_and_cache": torch_operations.rotate_and_cache,
    "decode_attention": torch_operations.decode_attention,
    "prefill_attention": torch_operations.prefill_attention,
    "make_decode_inputs": torch_operations.make_decode_inputs,
    "row_matmul": torch_operations.row_matmul,
    "add_low_rank": torch_operations.add_low_rank,
    "tile_matmul": torch_operations.row_matmul,
    "gptq_one_row": torch_operations.gptq_matmul,
    "gptq_few_rows": torch_operations.gptq_matmul,
    "gptq_many_rows": torch_operations.gptq_matmul,
}

# In torch these wait for the device, which a recorded step may not.
DECODES_NEED = ("decode_attention",)
PROMPTS_NEED = ("decode_attention", "prefill_attention")


class Operations:
    """The operations in use, by the kernels' names.

    The self-check tries a few sizes, and a kernel is compiled anew for some others. What fails to compile or start in
    service is replaced there and then.

    Args:
        device: the device that the kernels run on.
        may_replace: whether a kernel that fails in service is replaced; else its failure is raised.

    Attributes:
        replaced: the kernels that torch stands in for, and why.
    """

    def __init__(self, device: torch.device, *, may_replace: bool = True) -> None:
        self._device = device
        self._in_use = {name: self._guarded(name) if may_replace else kernel for name, kernel in KERNELS.items()}
        self.replaced: dict[str, str] = {}

    def __getitem__(self, name: str) -> Operation:
        return self._in_use[name]

    def replace(self, name: str, reason: str) -> None:
        """Puts torch's operation in a kernel's place."""
        self.replaced[name] = reason
        if name in TORCH:
            self._in_use[name] = TORCH[name]

    def _guarded(self, name: str) -> Operation:
        kernel = KERNELS[name]

        def run(*arguments: Any, **options: Any) -> Any:
            try:
                return kernel(*arguments, **options)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                # A step that is being recorded cannot be mended, and one on a device that died not at all.
                if is_recording(self._device) or not is_alive(self._device):
                    raise
                self.replace(name, one_line(error))
                logger.error("the kernel %s fails in service; torch does its work: %s", name, self.replaced[name])
                if name not in TORCH:
                    raise
            return TORCH[name](*arguments, **options)

        return run
