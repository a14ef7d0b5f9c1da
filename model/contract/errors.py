"""The errors this project raises on purpose, each with a message that says what to do.

Pure: imports nothing. The server maps `InvalidRequestError` to HTTP 400; everything under
`StartupError` stops the start with one line.
"""

from __future__ import annotations

_MAX_CHARS = 1000


class QwenServerError(Exception):
    """Root of every error raised on purpose."""


class StartupError(QwenServerError):
    """The server cannot start; the message is the one line shown to the person who started it.

    It may quote what a file says, which may be as long as the file.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message if len(message) <= _MAX_CHARS else f"{message[:_MAX_CHARS]} ...")


class ConfigError(StartupError):
    """A setting is wrong, unknown or contradicts another."""


class CheckpointError(StartupError):
    """A checkpoint is missing, incomplete, corrupt or not of a kind we serve."""


class AdapterError(CheckpointError):
    """A LoRA adapter is missing, corrupt, of another base or of a kind that is not served."""


class RestartNeededError(QwenServerError):
    """This process cannot go on, and another start will not meet what stopped it."""


class InvalidRequestError(QwenServerError):
    """A request cannot be served as asked.

    Args:
        message: says what is wrong and what to do about it.
        param: the request field at fault, or None.
        code: the machine-readable code, such as `context_length_exceeded`, or None.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class EngineUnavailableError(QwenServerError):
    """The engine is loading, recovering, draining or gone."""
