"""What every process of the engine does alike: write its log, and end with the process that started it."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import signal
import sys

import orjson

from model.contract.engine_config import EngineConfig
from model.contract.errors import RestartNeededError, StartupError
from model.contract.log_text import first_line, with_indented_lines
from model.contract.messages import EngineFailed

_PR_SET_PDEATHSIG = 1


class _JsonFormatter(logging.Formatter):
    """One JSON object a line, in the shape of the server's own."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank

    def format(self, record: logging.LogRecord) -> str:
        """Returns the object as text."""
        entry: dict[str, object] = {
            "time": record.created,
            "level": record.levelname.lower(),
            "logger": "engine",
            "message": record.getMessage(),
        }
        if self._rank:
            entry["rank"] = self._rank
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(entry).decode()


class _TextFormatter(logging.Formatter):
    """A line, and indented what follows of a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        return with_indented_lines(super().format(record))


def configure_logging(config: EngineConfig, rank: int = 0) -> None:
    """Writes to the standard error what the server relays; ranks but the first only what is wrong."""
    handler = logging.StreamHandler(sys.stderr)
    name = f"rank {rank}: " if rank else ""
    text = _TextFormatter(f"%(asctime)s %(levelname)s engine: {name}%(message)s")
    handler.setFormatter(_JsonFormatter(rank) if config.log_format == "json" else text)
    level = logging.getLevelNamesMapping()[config.log_level.upper()]
    logging.basicConfig(level=max(level, logging.WARNING) if rank else level, handlers=[handler], force=bool(rank))


def die_with_parent() -> None:
    """Asks the kernel to end this process when the one that started it is gone: in a step that hangs, nobody reads."""
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def failure_of(error: Exception, what: str = "") -> EngineFailed:
    """Says what an error that ends a process means for the next one.

    Args:
        what: goes before the words of an error that was not foreseen.
    """
    if isinstance(error, StartupError):
        return EngineFailed(str(error), is_startup_error=True)
    if isinstance(error, RestartNeededError):
        return EngineFailed(str(error), is_startup_error=False, wants_restart=True)
    return EngineFailed(what + first_line(error), is_startup_error=False)
