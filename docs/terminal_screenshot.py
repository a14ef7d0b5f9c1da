"""Makes the README's picture of the terminal: a real chat in tmux, typed at, then drawn as SVG.

`python -m docs.terminal_screenshot CHECKPOINT docs/images/terminal.svg` needs tmux. What is on the picture is what the
checkpoint said; nothing is touched up.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import tempfile
from functools import partial
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from server.run_module import module_command
from tests.support.tmux import terminal

COLUMNS, ROWS = 96, 40
TOOLS = [
    {
        "name": "get_weather",
        "description": "Get the current weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
]
QUESTIONS = ("Hello! What can you do?", "What is the capital of France?", "法国的首都是哪里？")
TOOL_QUESTION, TOOL_RESULT = "What is the weather in Paris?", "18 degrees, sunny"
_REPLY_TIMEOUT_S = 120


def capture(checkpoint: str, questions: tuple[str, ...] = QUESTIONS) -> str:
    """Chats, and returns the screen at its end, with the terminal's colours.

    Args:
        checkpoint: a folder or hub id.
        questions: asked before the one that needs the tool.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tools = folder / "tools.json"
        tools.write_text(json.dumps(TOOLS))
        command = module_command("server", "chat", checkpoint, "--set", "temperature=0 max_tokens=200")
        environment = {"XDG_STATE_HOME": name, "TERM": "xterm-256color"}
        with terminal(command, size=(COLUMNS, ROWS), **environment) as window:
            window.wait("you>", _REPLY_TIMEOUT_S)
            for number, question in enumerate(questions, 1):
                window.type(question, "Enter")
                window.wait(partial(_has_replies, number), _REPLY_TIMEOUT_S)
            window.type("/clear", "Enter", f"/tools {tools}", "Enter", TOOL_QUESTION, "Enter")
            window.wait("result of get_weather>", _REPLY_TIMEOUT_S)
            window.type(TOOL_RESULT, "Enter")
            window.wait(partial(_has_replies, len(questions) + 2), _REPLY_TIMEOUT_S)
            screen = window.colored_screen()
    return screen.replace(str(tools), "tools.json")


def _has_replies(number: int, text: str) -> bool:
    return text.count("in the context") == number


def draw(screen: str) -> str:
    """Returns a screen as SVG that asks no other host for anything.

    Args:
        screen: lines with escape sequences for colours.
    """
    console = Console(record=True, width=COLUMNS, file=Path("/dev/null").open("w"), force_terminal=True)
    with console.file:
        console.print(Text.from_ansi(screen.rstrip()), soft_wrap=True)
        svg = console.export_svg(title="qwen-server chat", theme=MONOKAI)
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    return re.sub(r'textLength="([\d.]+)"([^>]*>)([^<]*)</text>', _widen, svg)


def _widen(element: re.Match[str]) -> str:
    """Gives Chinese its two columns a character; rich counts characters."""
    length, middle, text = element.groups()
    plain = html.unescape(text)
    columns = float(length) / max(len(plain), 1) * cell_len(plain)
    return f'textLength="{columns:g}"{middle}{text}</text>'


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkpoint")
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(draw(capture(arguments.checkpoint)), encoding="utf-8")


if __name__ == "__main__":
    main()
