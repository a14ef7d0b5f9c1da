"""Renders streamed Markdown on a terminal, without flicker and without losing the scrollback.

Blocks that can no longer change are printed once. Only the unfinished block is redrawn, in a region that is never
taller than the screen, because lines that have scrolled away cannot be redrawn.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import unicodedata
from types import TracebackType

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.spinner import Spinner
from rich.text import Text

_REDRAW_INTERVAL_S = 0.08
_PAUSE_FACTOR = 4
_ROWS_KEPT_FREE = 3
# HTML is off: rich does not draw it, so tags and types such as List<int> in a reply would vanish.
_PARSER = MarkdownIt("commonmark", {"html": False}).enable("table").enable("strikethrough")


def printable(text: str) -> str:
    """Returns the text without escape and other control characters, which would command the terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def split_blocks(text: str) -> list[str]:
    """Splits Markdown, in whole lines from the start of a block, into its top-level blocks."""
    starts = [token.map[0] for token in _PARSER.parse(text) if token.level == 0 and token.map]
    lines = text.splitlines(keepends=True)
    edges = [0, *sorted(set(starts[1:]) - {0}), len(lines)]
    return ["".join(lines[start:end]) for start, end in itertools.pairwise(edges)]


def stable_blocks(text: str) -> list[str]:
    """Returns the blocks that further text cannot change: all but the last one."""
    return split_blocks(text[: text.rfind("\n") + 1])[:-1]


class MarkdownStream:
    """Shows one reply on the terminal; needs a running event loop.

    Args:
        hold: print no block before `end`, as the text may turn out to be a thought, which is shown differently.
    """

    def __init__(self, console: Console, *, hold: bool = False) -> None:
        self._console = console
        self._hold = hold
        self._text = ""
        self._num_printed = 0
        self._footer: RenderableType | None = None
        self._any_printed = False
        self._is_over = False
        self._is_changed = False
        self._timer: asyncio.TimerHandle | None = None
        self._spinner = Spinner("dots", style="dim")
        self._live = Live(
            self,
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> MarkdownStream:
        """Starts drawing."""
        self._live.start()
        self._tick()
        return self

    def _tick(self) -> None:
        """Redraws at intervals if the text has changed: a frame per token would be slow, and idle frames flicker."""
        started = time.monotonic()
        if self._is_changed or not self._text:  # the spinner turns until there is text
            self._is_changed = False
            self.settle()
            self._live.refresh()
        # A block of thousands of lines takes long to draw, so it is drawn less often.
        pause_s = max(_REDRAW_INTERVAL_S, _PAUSE_FACTOR * (time.monotonic() - started))
        self._timer = asyncio.get_running_loop().call_later(pause_s, self._tick)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stops drawing; text that `end` has not printed disappears."""
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
        self._live.stop()

    def update(self, text: str, footer: RenderableType | None = None) -> None:
        """Shows the whole text so far, and until `end` a footer below it."""
        self._text = text
        self._footer = footer
        self._is_changed = True

    def settle(self) -> None:
        """Prints the blocks that can no longer change."""
        if self._hold:
            return
        for block in stable_blocks(self._text[self._num_printed :]):
            self._num_printed += len(block)  # before printing, which redraws the rest
            self._print(block)

    def end(self, *, is_thought: bool = False) -> None:
        """Prints the rest, which is the model's thought before a call if `is_thought`."""
        self._is_over = True
        rest = self._text[self._num_printed :]
        if not rest.strip():
            return
        if is_thought:
            self._console.print(Text(f"thinks: {printable(rest).strip()}", style="dim italic"))
            return
        for block in split_blocks(rest):
            self._print(block)

    def _print(self, block: str) -> None:
        if block.strip():
            gap = [Text("")] if self._any_printed else []
            self._any_printed = True
            self._console.print(Group(*gap, _Lines(_markdown(block))))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draws as much of the end of the unprinted text as fits on the screen."""
        if self._is_over:
            return
        rest = self._text[self._num_printed :]
        gap: list[list[Segment]] = [[]] if self._any_printed and rest.strip() else []
        parts: list[RenderableType] = [_markdown(rest)] if rest.strip() else []
        if self._footer is not None:
            parts.append(self._footer)
        if not self._text and not parts:
            parts.append(self._spinner)
        lines = gap + [line for part in parts for line in _stripped_lines(part, console, options)]
        for line in lines[-max(console.height - _ROWS_KEPT_FREE, 1) :]:
            yield from line
            yield Segment.line()


class _Lines:
    """Renders Markdown without the trailing spaces that fill its lines, which would be copied along with text."""

    def __init__(self, content: RenderableType) -> None:
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in _stripped_lines(self._content, console, options):
            yield from line
            yield Segment.line()


def _stripped_lines(content: RenderableType, console: Console, options: ConsoleOptions) -> list[list[Segment]]:
    """Renders lines without trailing spaces, and without empty lines before and after them."""
    lines = [_stripped(line) for line in console.render_lines(content, options, pad=False)]
    while lines and not lines[0]:
        lines.pop(0)
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _stripped(line: list[Segment]) -> list[Segment]:
    def is_plain(segment: Segment) -> bool:
        return not (segment.style and segment.style.bgcolor)

    while line and is_plain(line[-1]) and not line[-1].text.strip():
        line.pop()
    if line and is_plain(line[-1]):
        text, style, control = line[-1]
        line[-1] = Segment(text.rstrip(), style, control)
    return line


def _markdown(text: str) -> Markdown:
    # Links show their address instead of hiding it behind words, because replies are not trusted.
    drawn = Markdown("", hyperlinks=False)
    drawn.parsed = _PARSER.parse(printable(text))
    return drawn
