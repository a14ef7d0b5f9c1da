"""Which operations the backend runs: each a Triton kernel, or torch's own in its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from model.backends.cuda import torch_operations
from model.backends.cuda.kernels.decode_attention import decode_attention
from model.backends.cuda.kernels.decode_inputs import make_decode_inputs
from model.backends.cuda.kernels.gptq_matmul import gptq_matmul
from model.backends.cuda.kernels.norm import rms_norm
from model.backends.cuda.kernels.prefill_attention import prefill_attention
from model.backends.cuda.kernels.rotary import rotate_and_cache
from model.backends.cuda.kernels.row_matmul import row_matmul
from model.backends.cuda.kernels.sampling import sample_rows
from model.backends.cuda.kernels.silu_mul import silu_mul

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
    "gptq_one_row": gptq_matmul,
    "gptq_few_rows": gptq_matmul,
    "gptq_many_rows": gptq_matmul,
}

# Without its kernel, sampling is left to model/drawing.py, whose operation this is not: it is handed rows, not numbers.
TORCH: dict[str, Operation] = {
    "rms_norm": torch_operations.rms_norm,
    "silu_mul": torch_operations.silu_mul,
    "rotate_and_cache": torch_operations.rotate_and_cache,
    "decode_attention": torch_operations.decode_attention,
    "prefill_attention": torch_operations.prefill_attention,
    "make_decode_inputs": torch_operations.make_decode_inputs,
    "row_matmul": torch_operations.row_matmul,
    "gptq_one_row": torch_operations.gptq_matmul,
    "gptq_few_rows": torch_operations.gptq_matmul,
    "gptq_many_rows": torch_operations.gptq_matmul,
}

# A recorded step may not wait for the device, as these do in torch.
NEEDED_BY_GRAPHS = ("decode_attention",)


class Operations:
    """What is in use, by the kernels' names.

    Attributes:
        replaced: the kernels that torch stands in for, and why.
    """

    def __init__(self) -> None:
        self._in_use = dict(KERNELS)
        self.replaced: dict[str, str] = {}

    def __getitem__(self, name: str) -> Operation:
        return self._in_use[name]

    def replace(self, name: str, reason: str) -> None:
        """Has torch do what a kernel cannot."""
        self.replaced[name] = reason
        if name in TORCH:
            self._in_use[name] = TORCH[name]
