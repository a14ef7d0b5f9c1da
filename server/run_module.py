"""How this project starts a Python process of its own: `python -P run_module.py MODULE ...`, never `python -m MODULE`.

`-m` puts the working folder first on the import path: in a folder that holds a `torch.py`, a checkpoint downloaded from
anywhere, that file would be executed; in a project with a `model.py` nothing would start. With `-P` only what is
installed can be imported, and the packages beside this one, which need not be installed to run from a checkout.
"""

from __future__ import annotations

import os
import runpy
import sys

_PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def module_command(module: str, *arguments: str, python: str = sys.executable) -> list[str]:
    """Returns the command line of a new process.

    Args:
        module: what it runs, as after `python -m`.
        arguments: for the module.
        python: another interpreter than this one.
    """
    return [python, "-P", os.path.abspath(__file__), module, *arguments]


if __name__ == "__main__":
    if _PACKAGES not in sys.path:
        sys.path.insert(0, _PACKAGES)
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
