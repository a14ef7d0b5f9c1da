"""A rendered prompt as a list of segments: text, or a control token.

This is the one guard against smuggled control tokens: whatever comes from a user or a tool can only
be a `Text`, and a `Text` is only ever encoded as ordinary text. This file knows no vocabulary; the
caller brings the encoder.
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
    """A control token by its name, such as `<|im_start|>`. Only renderers make these."""

    name: str


Segment = Text | Special


def encode(
    segments: Iterable[Segment],
    encode_text: Callable[[str], Sequence[int]],
    special_id: Callable[[str], int],
) -> list[int]:
    """Turns segments into token ids.

    Each segment is encoded on its own, so a renderer decides by its segments which characters may
    share a token: ChatML keeps the role, the newline and the content apart, as the published code does.

    Args:
        encode_text: text -> ids; must never yield a control token.
        special_id: name of a control token -> its id.
    """
    token_ids: list[int] = []
    for segment in segments:
        if isinstance(segment, Text):
            token_ids.extend(encode_text(segment.text))
        else:
            token_ids.append(special_id(segment.name))
    return token_ids
