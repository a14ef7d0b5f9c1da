"""Cosines and sines of rotary angles, the same for an angle whatever other ones there are."""

from __future__ import annotations

import functools

import torch

from model.backends.cpu.jit import Code, compile_functions
from model.backends.cpu.rows.angle_ir import COS_SIN, module_text


def cos_sin(angles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of float32 angles on the CPU; torch's where there is no compiler."""
    code = _code()
    if code is None:
        return angles.cos(), angles.sin()
    angles = angles.contiguous()
    cosines, sines = torch.empty_like(angles), torch.empty_like(angles)
    code.run(COS_SIN, 1, angles.data_ptr(), cosines.data_ptr(), sines.data_ptr(), angles.numel())
    return cosines, sines


@functools.cache
def _code() -> Code | None:
    return compile_functions(module_text(), [COS_SIN])
