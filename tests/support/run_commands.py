"""Runs several commands of `qwen-server` in one process, which imports torch once for all of them.

Reads their words from standard input, as JSON: a list of lists. Prints, as JSON, what each of them printed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import sys
from collections.abc import Sequence
from typing import NoReturn

from server.__main__ import main
from server.run_module import module_command

_START = module_command("")[:-1]


def run_here(path: str, command: Sequence[str]) -> NoReturn:
    """Stands in for `os.execv`: the module runs in this process, if the new one would be as safe."""
    if list(command[: len(_START)]) != _START:
        sys.exit(f"{command} looks into the working folder")
    module, *words = command[len(_START) :]
    sys.argv[1:] = words
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.exit(0)


def run(words: list[str]) -> str:
    """What the command printed; ends the process where it fails."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            status: object = main(words)
        except SystemExit as ended:
            status = ended.code
    if status:
        sys.exit(f"{words} ended with {status}: {printed.getvalue()}")
    return printed.getvalue()


if __name__ == "__main__":
    os.execv = run_here
    print(json.dumps([run(words) for words in json.load(sys.stdin)]))
