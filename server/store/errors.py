"""The store's errors, apart from it so that code which only reports them need not load it."""

from __future__ import annotations

from model.contract.errors import QwenServerError


class StoreError(QwenServerError):
    """The store cannot be read or written now; the message says why."""


class StoreFullError(StoreError):
    """There is no room for what was to be stored."""
