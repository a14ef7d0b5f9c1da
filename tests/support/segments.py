"""Rendered prompts as tests compare them."""

from __future__ import annotations

from collections.abc import Iterable

from prompts.segments import Segment, Text


def display(segments: Iterable[Segment]) -> str:
    """Joins segments to a text, control tokens by name."""
    return "".join(segment.text if isinstance(segment, Text) else segment.name for segment in segments)
