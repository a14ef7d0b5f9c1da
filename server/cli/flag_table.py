"""The README's table of flags, written from the settings: `python -m server.cli.flag_table README.md` renews it."""

from __future__ import annotations

import sys
from pathlib import Path

from server.settings import Settings, flag_name

_BEGIN, _END = "<!-- flags: begin -->\n", "<!-- flags: end -->"


def flag_table() -> str:
    """Returns the table, a line a flag, in Markdown."""
    lines = ["| flag | default | what |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        if name != "model":
            default = "" if field.default in (None, (), False) else str(field.default)
            lines.append(f"| `{flag_name(name)}` | {default} | {(field.description or '').replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def with_table(text: str) -> str:
    """Returns a text with the table between its markers renewed.

    Raises:
        ValueError: a marker is missing.
    """
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"the text needs the lines {_BEGIN.strip()} and {_END}")
    return before + begin + flag_table() + end + after


def main() -> None:
    """Renews the table in the files named."""
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
