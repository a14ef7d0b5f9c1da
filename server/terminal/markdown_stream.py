"""Markdown on a terminal while it is being written, without flicker and without losing the scrollback.

Blocks that can no longer change are printed once, for good. Only the block under way is drawn again and again, in a
region never taller than the screen: what a terminal has scrolled away it cannot draw over.
"""

from __future__ import annotations

import unicodedata
from types import TracebackType

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.spinner import Spinner
from rich.text import Text

_REDRAWS_A_SECOND = 12
_ROWS_KEPT_FREE = 3
_PARSER = MarkdownIt().enable("table").enable("strikethrough")


def printable(text: str) -> str:
    """Returns text without what would command the terminal: escape and other control characters."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def stable_length(text: str) -> int:
    """Returns how much of a text is blocks that more text cannot change; the last block never is.

    Args:
        text: Markdown, from the start of a block.
    """
    whole_lines = text[: text.rfind("\n") + 1]
    starts = [token.map[0] for token in _PARSER.parse(whole_lines) if token.level == 0 and token.map]
    if len(starts) < 2 or starts[-1] == 0:
        return 0
    lines = whole_lines.splitlines(keepends=True)
    return sum(map(len, lines[: starts[-1]]))


class MarkdownStream:
    """A reply on the terminal, from its first character to its last.

    Args:
        console: to draw on.
        hold: print nothing for good before `end`, because it may have to be shown in another way.
    """

    def __init__(self, console: Console, *, hold: bool = False) -> None:
        self._console = console
        self._hold = hold
        self._text = ""
        self._num_printed = 0
        self._footer: RenderableType | None = None
        self._spinner = Spinner("dots", style="dim")
        self._live = Live(
            self,
            console=console,
            refresh_per_second=_REDRAWS_A_SECOND,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> MarkdownStream:
        """Begins to draw."""
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Draws no more; what `end` has not printed is gone."""
        self._text, self._num_printed, self._footer = "", 0, None
        self._live.stop()

    def update(self, text: str, footer: RenderableType | None = None) -> None:
        """Shows the text so far.

        Args:
            text: all of it; what was given before is its start.
            footer: shown below it, until `end`.
        """
        self._text = text
        self._footer = footer
        if self._hold:
            return
        stable = stable_length(text[self._num_printed :])
        if stable:
            done = text[self._num_printed : self._num_printed + stable]
            self._num_printed += stable  # first: printing draws what is left
            self._print(done)

    def end(self, *, style: str = "") -> None:
        """Prints for good what is not printed yet.

        Args:
            style: of plain text; Markdown where there is none.
        """
        rest, self._num_printed, self._footer = self._text[self._num_printed :], len(self._text), None
        if style:
            self._console.print(Text(printable(rest).strip(), style=style))
        elif rest.strip():
            self._print(rest)

    def _print(self, text: str) -> None:
        self._console.print(Group(_markdown(text), Text("")))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draws the end of what is not printed yet, as much as fits on the screen."""
        rest = self._text[self._num_printed :]
        parts: list[RenderableType] = [_markdown(rest)] if rest.strip() else []
        if self._footer is not None:
            parts.append(self._footer)
        if not self._text and not parts:
            parts.append(self._spinner)
        lines = [line for part in parts for line in console.render_lines(part, options, pad=False)]
        for line in lines[-max(console.height - _ROWS_KEPT_FREE, 1) :]:
            yield from line
            yield Segment.line()


def _markdown(text: str) -> Markdown:
    # Links are shown with their address, not behind words: a reply is not to be trusted.
    return Markdown(printable(text), hyperlinks=False)
