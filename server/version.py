"""Which server this is: its version, and the commit that it was made from.

A build writes both into build.json. In a checkout that file is as old as the last installation, so git is asked.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import NamedTuple

_FOLDER = Path(__file__).parent
_COMMIT_IN_VERSION = re.compile(r"\+g([0-9a-f]+)")
_NUM_DIGITS = 10
_GIT_TIMEOUT_S = 5


class Version(NamedTuple):
    """Answer of `/version`.

    Attributes:
        version: pip's.
        commit: first digits of the commit, with -dirty behind them where the source was changed since; None: unknown.
    """

    version: str
    commit: str | None

    def __str__(self) -> str:
        return self.version if self.commit is None else f"{self.version} (commit {self.commit})"


@functools.cache
def server_version() -> Version:
    """Returns the version of this server."""
    return read_version(_FOLDER)


def read_version(folder: Path) -> Version:
    """Returns the version of the `server` package in a folder."""
    try:
        built = json.loads((folder / "build.json").read_text(encoding="utf-8"))
        version, commit = str(built["version"]), str(built["commit"])
    except (OSError, ValueError, LookupError):
        version, commit = _installed(), ""
    if (folder.parent / ".git").exists():
        here = _checked_out(folder.parent)
        if here is not None:
            return Version(f"{version.partition('+')[0]}+g{here.replace('-', '.')}", here)
    found = re.fullmatch(r"g?([0-9a-f]{7,})", commit) or _COMMIT_IN_VERSION.search(version)
    return Version(version, None if found is None else found[1][:_NUM_DIGITS])


def _installed() -> str:
    try:
        return metadata("qwen-server")["Version"]
    except PackageNotFoundError:
        return "unknown"


def _checked_out(root: Path) -> str | None:
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", f"--abbrev={_NUM_DIGITS}", "--exclude=*"]
    environ = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
