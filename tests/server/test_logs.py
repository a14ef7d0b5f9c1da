"""How log lines look."""

from __future__ import annotations

import json
import logging

from server.logs import JsonFormatter, TextFormatter


def record(**fields: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "server.x", "levelname": "INFO", "msg": "prompt"})
    made.fields = fields
    return made


def test_a_value_stays_on_the_line_and_does_not_command_the_terminal() -> None:
    forged = "hi\n2026-01-01 00:00:00,000 WARNING server.auth [req-1] let in \x1b[2J\u2028\x85"
    line = TextFormatter().format(record(text=forged, count=3))
    assert line.splitlines() == [line]
    assert "\x1b" not in line
    assert line.endswith(" count=3")
    assert json.loads(JsonFormatter().format(record(text=forged)))["text"] == forged


def test_a_value_that_can_be_printed_is_as_it_was() -> None:
    assert TextFormatter().format(record(text="你好, Zoë")).endswith(" prompt text=你好, Zoë")
