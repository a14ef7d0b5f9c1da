"""How a process ended, in words."""

from __future__ import annotations

import signal


def describe_exit(status: int) -> str:
    """Says in words how a process ended.

    Args:
        status: its exit status, negative for a signal.
    """
    if status >= 0:
        return f"exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return name + (" (out of memory, or by hand)" if -status == signal.SIGKILL else "")
