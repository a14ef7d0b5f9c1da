"""The split between training and evaluation."""

from __future__ import annotations

import zlib

TRAIN, HELD_OUT = "train", "held-out"


def is_held_out(text: str, share: int = 7) -> bool:
    """Whether a word, template or tool belongs to the evaluation (one in `share` does); decided by its text alone."""
    return zlib.crc32(text.encode()) % share == 0
