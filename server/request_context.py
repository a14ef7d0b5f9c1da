"""The id of the request being served, for log lines and replies.

A context variable, so that every coroutine started for a request inherits it.
"""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar

NO_REQUEST = "-"
request_id_var: ContextVar[str] = ContextVar("request_id", default=NO_REQUEST)
# Where a generation leaves the figures of its log line for whoever traces the request; None: nobody does.
request_figures_var: ContextVar[dict[str, object] | None] = ContextVar("request_figures", default=None)

_SANE_ID = re.compile(r"[A-Za-z0-9._:@/+=-]{1,128}")


def choose_request_id(offered: str | None) -> str:
    """Takes the client's own id if it is short and harmless in a header and a log, else makes one."""
    if offered is not None and _SANE_ID.fullmatch(offered):
        return offered
    return f"req-{uuid.uuid4().hex}"
