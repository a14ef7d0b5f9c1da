"""What the processes that work on checkpoints have in common: one line about what went wrong, and an exit status."""

from __future__ import annotations

import argparse
import errno
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from model.contract.errors import StartupError

logger = logging.getLogger(__name__)


def parse_arguments(module: str, doc: str | None, add_arguments: Callable[[argparse.ArgumentParser], None]) -> Any:
    """Reads the command line of a process that is started as `python -m module`; `doc` is its docstring."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=(doc or "").splitlines()[0])
    add_arguments(parser)
    return parser.parse_args()


def log_written(target: Path) -> None:
    """Says what was written, a file or a folder of files, and how large it is."""
    paths = target.iterdir() if target.is_dir() else [target]
    logger.info("wrote %s, %.2f GB", target, sum(path.stat().st_size for path in paths) / 1e9)


def run_work(work: Callable[[], None], *, out_of_memory: str, interrupted: str = "nothing was written") -> int:
    """Runs what the process is there for.

    Args:
        work: raises StartupError for what the person who started it can mend.
        out_of_memory: what to try where the device's memory is too small.
        interrupted: what an interrupt leaves behind.

    Returns:
        0, 1 after one line on stderr, or 130 when interrupted by Ctrl-C or SIGTERM.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        work()
    except StartupError as error:
        return _fail(" ".join(str(error).split()))
    except torch.OutOfMemoryError as error:
        return _fail(f"out of device memory ({str(error).splitlines()[0]}); {out_of_memory}")
    except OSError as error:
        full = "; the disk is full" if error.errno == errno.ENOSPC else ""
        return _fail(f"{error}{full}")
    except KeyboardInterrupt as error:
        _fail(f"interrupted; {str(error) or interrupted}")
        return 130
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _fail(text: str) -> int:
    sys.stderr.write(f"qwen-server: {text}\n")
    return 1
