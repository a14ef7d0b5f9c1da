"""Keeps compiled kernels between starts: to compile them takes a second of each, to read them a hundredth.

A file holds one object and is named by all that it was made from: another kernel, processor or compiler starts afresh.
What is read is run. So only what this user wrote, into a folder to which nobody else writes, is believed, and only when
it is whole. Whatever goes wrong, the kernel is compiled again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import stat
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

# A checkpoint needs five or six objects of up to 60 KB; those of other versions are the oldest and go first.
_MAX_FILES = 128
_MAX_BYTES = 4 << 20
_DIGEST_BYTES = hashlib.sha256().digest_size


class ObjectCache:
    """Object code by what it was made from.

    Args:
        folder: made when something is kept; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def read(self, source: str) -> bytes | None:
        """Returns what was kept, or None where there is none to be believed.

        Args:
            source: all that the object depends on.
        """
        if self._folder is None:
            return None
        try:
            if not self._is_private():
                return None
            path = self._folder / _name(source)
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode) or not _is_ours(status):
                    _warn_once(f"{path} is not used: others could have written it")
                    return None
                content = file.read(_MAX_BYTES)
        except OSError:
            return None
        code = content[_DIGEST_BYTES:]
        return code if content[:_DIGEST_BYTES] == _digest(source, code) else None

    def keep(self, source: str, code: bytes) -> None:
        """Keeps an object; where that is not possible, the next start compiles it again."""
        if self._folder is None:
            return
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._is_private():
                return
            number, partial = tempfile.mkstemp(dir=self._folder)
            try:
                with open(number, "wb") as file:
                    file.write(_digest(source, code) + code)
                os.replace(partial, self._folder / _name(source))
            except OSError:
                os.unlink(partial)
                raise
            self._drop_oldest()
        except OSError as error:
            logger.debug("compiled kernels are not kept in %s: %s", self._folder, error)

    def _is_private(self) -> bool:
        assert self._folder is not None
        status = os.stat(self._folder)
        if not _is_ours(status):
            _warn_once(f"{self._folder} is not used: others may write to it")
        return _is_ours(status)

    def _drop_oldest(self) -> None:
        """Keeps the newest files; what a process that was killed has left of one gets old too."""
        assert self._folder is not None
        ages = []
        for entry in os.scandir(self._folder):
            with contextlib.suppress(OSError):  # gone: another process does the same
                ages.append((entry.stat(follow_symlinks=False).st_mtime, entry.path))
        for _, path in sorted(ages)[:-_MAX_FILES]:
            with contextlib.suppress(OSError):
                os.unlink(path)


def user_cache() -> ObjectCache:
    """The cache of the user who runs this process: under `XDG_CACHE_HOME`, or the home folder's `.cache`."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        caches = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    except RuntimeError:  # a user without a home
        return ObjectCache(None)
    return ObjectCache(caches / "qwen-server" / "cpu-kernels")


@functools.cache
def _warn_once(text: str) -> None:
    """Warns, but not for each of the kernels, read and kept."""
    logger.warning(text)


def _name(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:32] + ".o"


def _digest(source: str, code: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(source.encode()).digest() + code).digest()


def _is_ours(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
