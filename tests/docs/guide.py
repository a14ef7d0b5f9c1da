"""The examples of a Markdown page: fenced blocks, each with the comment in front of it that says how it is run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import ROOT

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
ADDRESS = "http://127.0.0.1:8000"

_BLOCK = re.compile(
    r"(?:^<!-- (?P<how>[^\n]*?) -->\n)?^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Example:
    """One fenced block of a page.

    Attributes:
        line: number of its first line.
        how: the comment before it, which says how it is run; may be empty. Our own commands are then only parsed.
    """

    page: Path
    line: int
    language: str
    how: str
    text: str

    @property
    def needs(self) -> tuple[str, str] | None:
        """Package and version that it was run with, where that is no part of the development environment."""
        match = re.fullmatch(r"run with: (\S+) (\S+)", self.how)
        return (match[1], match[2]) if match else None

    def at(self, url: str) -> str:
        """The text, for a server elsewhere."""
        return self.text.replace(ADDRESS, url)


def examples(page: Path) -> list[Example]:
    """All examples of a page."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        how = match["how"] or ("parsed" if match["language"] == "bash" and "qwen-server " in match["text"] else "")
        found.append(Example(page, text.count("\n", 0, match.start("text")), match["language"], how, match["text"]))
    return found
