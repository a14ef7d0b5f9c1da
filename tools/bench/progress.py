"""A progress bar on the terminal while a level runs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tools.bench.load import Level

# A redraw takes a millisecond or two of the load generator's time, which may share its cores with the server.
_INTERVAL_S = 0.25


@contextlib.asynccontextmanager
async def shown(name: str, level: Level, total: int) -> AsyncIterator[None]:
    """Shows the progress of a level on stderr, if that is a terminal.

    Args:
        level: read, not changed, while it is filled in.
        total: number of requests of the level.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bar:
        task = bar.add_task(name, total=total, figures="")
        started = time.perf_counter()

        def draw() -> None:
            failed = sum(record.error is not None for record in level.records)
            tokens = sum(record.output_tokens for record in level.records if record.error is None)
            figures = f"{tokens / max(time.perf_counter() - started, 1e-3):.0f} tok/s"
            figures += f", {level.num_unfinished} running" + (f", {failed} failed" if failed else "")
            bar.update(task, completed=len(level.records), figures=figures, refresh=True)

        async def redraw() -> None:
            while True:
                draw()
                await asyncio.sleep(_INTERVAL_S)

        drawing = asyncio.create_task(redraw())
        try:
            yield
        finally:
            drawing.cancel()
