"""How this project starts a Python process of its own: `python -P run_module.py MODULE ...`, never `python -m MODULE`.

`-m` puts the working folder first on the import path. In a checkpoint's folder that came with a `torch.py`, that file
would be executed; in a project with a `model.py` nothing would start. With `-P`, installed packages can be imported and
those beside this file, so that a checkout runs without being installed.
"""

from __future__ import annotations

import os
import runpy
import sys

_PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def module_command(module: str, *arguments: str, python: str = sys.executable) -> list[str]:
    """Returns the command line of a process that runs `module` with `arguments`."""
    return [python, "-P", os.path.abspath(__file__), module, *arguments]


if __name__ == "__main__":
    if _PACKAGES not in sys.path:
        sys.path.insert(0, _PACKAGES)
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
