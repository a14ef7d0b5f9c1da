"""What commands have in common: kinds of numbers, and how one becomes the process that does its work.

Pure, so that the command can read flags without torch.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from server.run_module import module_command


def positive(text: str) -> int:
    """Reads a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def number(text: str) -> float:
    """Reads a number; what is none is NaN, which lies in no range."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def to_argv(add_arguments: Callable[[argparse.ArgumentParser], None], values: Mapping[str, Any]) -> list[str]:
    """Returns the words that parse to some values.

    Args:
        add_arguments: adds the flags that are meant.
        values: of them, by their names in the namespace; None leaves a flag out.
    """
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    argv = []
    for action in parser._actions:
        value, flags = values[action.dest], action.option_strings
        if not flags:
            argv.append(str(value))
        elif action.nargs == 0:  # a switch; one that has an opposite is given either way
            argv += flags[:1] if value else flags[1:] if value is False else []
        elif value is not None:
            argv.append(f"{flags[0]}={','.join(value) if isinstance(value, tuple) else value}")
    return argv


def become(module: str, argv: list[str]) -> int:
    """Starts a module in the place of this process: it may import torch, which no command does."""
    command = module_command(module, *argv)
    os.execv(command[0], command)
