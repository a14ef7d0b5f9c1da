"""Files that commands write their figures to."""

from __future__ import annotations

import os
from pathlib import Path

from model.contract.errors import ConfigError


def check_writable(path: Path) -> None:
    """Finds out before the work that its result could not be written.

    Raises:
        ConfigError: there is no such folder, the path is one, or it may not be written to.
    """
    # os.path, for a folder that may not be entered is an error to Path.
    target = path if os.path.exists(path) else path.absolute().parent
    if os.path.isdir(path) or not os.path.isdir(path.absolute().parent) or not os.access(target, os.W_OK):
        raise ConfigError(f"{path}: cannot be written; name a file in a folder that exists and that you may write to")
