"""How log lines look: text for people, JSON for machines, each with the id of its request."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Any

import orjson

from model.contract.log_text import on_one_line, with_indented_lines
from server.gates.request_context import request_id_var


class TextFormatter(logging.Formatter):
    """`2026-01-01 12:00:00,000 INFO module [request id] message key=value ...`."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line (several when there is a traceback)."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        line = (
            f"{stamp},{int(record.msecs):03d} {record.levelname} {record.name} "
            f"[{request_id_var.get()}] {on_one_line(record.getMessage())}"
        )
        fields = _fields(record)
        if fields:
            line += " " + " ".join(f"{key}={_shown(value)}" for key, value in fields.items())
        if record.exc_info:
            line += "\n    " + with_indented_lines(self.formatException(record.exc_info))
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the object as text."""
        entry: dict[str, Any] = {
            "time": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "request_id": request_id_var.get(),
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(entry, default=str).decode()


def _shown(value: Any) -> str:
    """Escapes a value: a prompt must not look like lines of the log, nor control the terminal that shows it."""
    text = str(value)
    return text if text.isprintable() else repr(text)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, dict) else {}


def json_line(message: str) -> str:
    """Returns a line of the JSON log, for a server that fails before logging is set up."""
    return JsonFormatter().format(logging.makeLogRecord({"name": "server", "levelname": "CRITICAL", "msg": message}))


def configure_logging(level: str, log_format: str) -> None:
    """Sends the log of the whole process to stderr.

    With JSON nothing else goes there: Python's own warnings, and the traceback of an unexpected end, become lines too.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    if log_format == "json":
        logging.captureWarnings(True)
        sys.excepthook = _log_uncaught
    for chatty in ("asyncio", "sse_starlette", "httpx", "httpx2", "httpcore", "filelock", "huggingface_hub"):
        logging.getLogger(chatty).setLevel(max(logging.INFO, root.level))
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, root.level))


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("server").critical("unexpected end: %s", error, exc_info=(kind, error, trace))
