"""What can be told of a kernel on a device: whether it serves, how exact it is, and how near to the device's limits."""

from __future__ import annotations

from typing import NamedTuple


class KernelExam(NamedTuple):
    """One kernel's.

    Attributes:
        name: of the kernel.
        error: the largest difference from torch's operation, over the largest magnitude; None if it did not run.
        tolerance: what rounding explains.
        failure: why it is not used, or None.
        time_us: of a call whose operands are not in the cache; None where it was not timed.
        num_bytes: that the call must move at least.
        num_flops: that it must compute, where arithmetic is the limit; else 0.
    """

    name: str
    error: float | None
    tolerance: float
    failure: str | None = None
    time_us: float | None = None
    num_bytes: int = 0
    num_flops: int = 0

    def limit_us(self, bytes_per_s: float, flops_per_s: float) -> float:
        """The time that the device's limits leave."""
        return 1e6 * max(self.num_bytes / bytes_per_s, self.num_flops / flops_per_s)
