"""What logs and error messages say of text from elsewhere, and of processes that ended.

Pure. Text from elsewhere must not pass for a line of its own, nor command the terminal that shows it.
"""

from __future__ import annotations

import signal


def on_one_line(text: str) -> str:
    """Returns a text with everything that is not printable escaped, line breaks too."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def first_line(error: BaseException) -> str:
    """Returns the first line of what an error says, or its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def with_indented_lines(text: str) -> str:
    """Returns a text of several lines, such as a traceback, as a log's line and what clearly belongs to it."""
    return "\n    ".join(on_one_line(line.replace("\t", " ")) for line in text.split("\n"))


def describe_exit(status: int) -> str:
    """Says in words how a process ended, by its exit status, which is negative for a signal."""
    if status >= 0:
        return f"exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return name + (" (out of memory, or by hand)" if -status == signal.SIGKILL else "")
