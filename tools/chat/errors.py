"""What goes wrong in a terminal chat, as a sentence for the person in front of it."""

from __future__ import annotations


class ChatError(Exception):
    """Something the user is told, in words that say what to do."""
