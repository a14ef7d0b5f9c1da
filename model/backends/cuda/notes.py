"""Findings about a device and these kernels, kept beside Triton's own files so that two starts agree.

Two things may not be decided anew at each start: which of two products that round differently serves, and which kernels
must not be tried again because the device did not survive them. The file's name holds all they depend on, so that
another driver, device, torch, Triton or kernel starts afresh.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton

logger = logging.getLogger(__name__)


class Notes:
    """Values by section and key; the first one kept stays.

    Args:
        path: the file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def read(self, section: str, key: str) -> Any:
        """Returns what was kept, or None."""
        return self._load().get(section, {}).get(key)

    def section(self, name: str) -> dict[str, Any]:
        """Returns all that was kept in a section."""
        return self._load().get(name, {})

    def keep(self, section: str, key: str, value: Any) -> Any:
        """Keeps a value, unless another process was first.

        Returns:
            the value that counts; None where nothing can be kept.
        """
        if self.path is None:
            return None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked():
                content = self._load()
                kept = content.setdefault(section, {}).setdefault(key, value)
                partial = self.path.with_suffix(f".{os.getpid()}")
                partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
                partial.replace(self.path)
        except OSError as error:
            logger.debug("cannot write %s: %s", self.path, error)
            return None
        return kept

    def can_keep(self) -> bool:
        """Returns whether there is a place to keep anything."""
        return self.keep("kept", "is", True) is not None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        assert self.path is not None
        with open(self.path.with_suffix(".lock"), "w", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _load(self) -> dict[str, dict[str, Any]]:
        if self.path is None:
            return {}
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        is_ours = isinstance(content, dict) and all(isinstance(part, dict) for part in content.values())
        return content if is_ours else {}


def device_notes(device: torch.device) -> Notes:
    """Returns the notes about a CUDA device; a change of anything they depend on gives others."""
    properties = torch.cuda.get_device_properties(device)
    versions = [torch.__version__, triton.__version__, str(torch.version.cuda)]
    facts = [properties.name, f"{properties.major}.{properties.minor}", *versions, _source_digest()]
    name = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    return Notes(Path(triton.knobs.cache.dir) / f"qwen-server-{name}.json")


def _source_digest() -> str:
    """Returns a digest of this backend's source text."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
