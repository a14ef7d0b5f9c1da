"""A rendered prompt as a list of segments: text, or a control token.

Segments keep control tokens from being smuggled in: everything from users and tools is a `Text`, and a `Text` is only
ever encoded as ordinary text. This file knows no vocabulary; callers pass in the encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    """Ordinary text; the characters `<|im_end|>` in it are just characters."""

    text: str


@dataclass(frozen=True, slots=True)
class Special:
    """A control token by its name, such as `<|im_start|>`. Only renderers create these."""

    name: str


Segment = Text | Special


def encode(
    segments: Iterable[Segment],
    encode_text: Callable[[str], Sequence[int]],
    special_id: Callable[[str], int],
) -> list[int]:
    """Turns segments into token ids.

    Each segment is encoded on its own, so no token spans two segments. ChatML keeps role, newline and content apart,
    as the published code does.

    Args:
        encode_text: must never return the id of a control token.
        special_id: returns the id of a control token, by its name.
    """
    token_ids: list[int] = []
    for segment in segments:
        if isinstance(segment, Text):
            token_ids.extend(encode_text(segment.text))
        else:
            token_ids.append(special_id(segment.name))
    return token_ids
