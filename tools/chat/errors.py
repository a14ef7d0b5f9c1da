"""The error of the terminal chat."""

from __future__ import annotations

from model.contract.errors import StartupError


class ChatError(StartupError):
    """Something went wrong; the message is a sentence for the user that says what to do."""
