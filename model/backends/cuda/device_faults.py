"""What went wrong on a device, and whether it still works: a failed launch harms nobody, a wrong address ends all."""

from __future__ import annotations

import torch

_MAX_REASON_CHARS = 300


def require_living_device(device: torch.device, error: Exception) -> None:
    """Returns if the device still computes.

    Args:
        device: that something failed on.
        error: it failed with.

    Raises:
        Exception: the error itself, when nothing works there any more until the process is another one.
    """
    try:
        alive = float(torch.ones(2, device=device).sum()) == 2.0
    except RuntimeError:
        alive = False
    if not alive:
        raise error


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference over the largest magnitude; infinite where one has a NaN and the other has not."""
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
    """Type and first line of an error, for the log."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}"[:_MAX_REASON_CHARS] if lines else type(error).__name__
