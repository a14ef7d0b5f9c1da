"""Text of anywhere in a log: it must not pass for a line of its own, nor command the terminal that shows it.

Pure.
"""

from __future__ import annotations


def on_one_line(text: str) -> str:
    """Returns a text with everything that is not printable escaped, line breaks too."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def with_indented_lines(text: str) -> str:
    """Returns a text of several lines, such as a traceback, as a log's line and what clearly belongs to it."""
    return "\n    ".join(on_one_line(line.replace("\t", " ")) for line in text.split("\n"))
