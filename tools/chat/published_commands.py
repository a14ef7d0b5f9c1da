"""Translates the commands of the published cli_demo.py, which begin with a colon, into slash commands.

Any other line that begins with a colon is a message, as it is there.
"""

from __future__ import annotations

_PLAIN = {
    ":help": "/help",
    ":h": "/help",
    ":exit": "/quit",
    ":quit": "/quit",
    ":q": "/quit",
    ":clear": "/cls",
    ":cl": "/cls",
    ":clear-his": "/clear",
    ":clh": "/clear",
    ":history": "/history",
    ":his": "/history",
    ":reset-conf": "/reset",
}
_WITH_REST = {":seed": "/seed", ":conf": "/set"}
# Settings whose names in the published generation config differ from those in requests.
_SETTINGS = {"max_new_tokens": "max_tokens", "stop_words": "stop"}
_VALUES = {"True": "true", "False": "false", "None": ""}


def translate(line: str) -> str:
    """Returns the slash command for a line; other lines are returned unchanged."""
    name, _, rest = line.strip().partition(" ")
    if name in _PLAIN:
        return _PLAIN[name]
    if name == ":conf":
        return " ".join(["/set", *(_setting(part) for part in rest.split())])
    return f"{_WITH_REST[name]} {rest}".strip() if name in _WITH_REST else line


def _setting(assignment: str) -> str:
    """Translates one `key=value`. Sampling is switched on and off by the temperature here."""
    name, equals, value = assignment.partition("=")
    value = _VALUES.get(value, value)
    if name == "do_sample" and equals:
        return "temperature=0" if value == "false" else "temperature="
    return f"{_SETTINGS.get(name, name)}{equals}{value}"
