"""Errors of a device, and whether it survived them: a failed launch harms nobody, a wrong address ends the process."""

from __future__ import annotations

import torch

_HEAD_CHARS, _TAIL_CHARS = 120, 200


class BrokenDeviceError(Exception):
    """Nothing works on the device any more in this process."""


def require_living_device(device: torch.device, error: Exception) -> None:
    """Returns if the device still computes after something failed on it.

    Raises:
        BrokenDeviceError: it does not; raised from the error.
    """
    if not is_alive(device):
        raise BrokenDeviceError(one_line(error)) from error


def is_alive(device: torch.device) -> bool:
    """Returns whether the device computes."""
    try:
        return float(torch.ones(2, device=device).sum()) == 2.0
    except RuntimeError:
        return False


def is_recording(device: torch.device) -> bool:
    """Returns whether a graph is being recorded, in which nothing may wait for the device."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns the largest difference over the largest magnitude; infinite where one has a NaN and the other has not."""
    if found.numel() == 0:
        return 0.0
    found, expected = found.detach().double(), expected.detach().double()
    is_number = ~expected.isnan()
    if not torch.equal(is_number, ~found.isnan()):
        return float("inf")
    difference = torch.where(found == expected, 0.0, (found - expected).abs()).nan_to_num(0.0, float("inf"))
    largest = torch.where(expected.isfinite(), expected.abs(), 0.0).max()
    return float(difference.max() / largest.clamp_min(1e-12))


def one_line(error: BaseException) -> str:
    """Returns type and text of an error for the log; of a long text the start and the end, where compilers say most."""
    text = " ".join(str(error).split("CUDA kernel errors might be")[0].split())
    if len(text) > _HEAD_CHARS + _TAIL_CHARS:
        text = f"{text[:_HEAD_CHARS]} ... {text[-_TAIL_CHARS:]}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
