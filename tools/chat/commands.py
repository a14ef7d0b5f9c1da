"""The slash commands. They change or show the conversation; they send nothing themselves."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from enum import Enum, auto
from pathlib import Path

from tools.chat.conversation import Conversation, as_path, read_tools
from tools.chat.errors import ChatError
from tools.chat.settings import parse_assignments

HELP = {
    "/system TEXT": "what the model is to be; alone shows it, `off` forgets it",
    "/tools FILE": "functions the model may call; alone lists them, `off` forgets",
    "/set NAME=VALUE": "as temperature=0.2; no value unsets; alone lists what is set",
    "/reset": "unset all of them",
    "/seed N": "of each reply, so that it can be had again; alone shows it",
    "/retry": "ask the last question again",
    "/history": "show what was said",
    "/clear": "forget what was said; system message, tools and settings stay",
    "/cls": "clear the screen",
    "/save FILE": "write the conversation, as a request body that curl could send",
    "/load FILE": "go on with a saved conversation",
    "/multi": "Enter begins a new line, Esc Enter sends; again turns it off",
    "/help": "this list",
    "/quit": "leave, as Ctrl-D does",
}
KEYS = (
    "Enter sends. Ctrl-J, Esc Enter, or a backslash before Enter begin a new line. Ctrl-C stops a reply; Ctrl-D leaves."
    " // at the start sends a line that begins with a slash."
)


class Next(Enum):
    """What the session has to do after a command."""

    NOTHING = auto()
    RETRY = auto()
    TOGGLE_MULTI = auto()
    CLEAR_SCREEN = auto()
    QUIT = auto()


class Commands:
    """Runs slash commands on a conversation; `say` prints a text."""

    def __init__(self, conversation: Conversation, say: Callable[[str], None]) -> None:
        self._conversation = conversation
        self._say = say
        self._table: dict[str, Callable[[str], Next]] = {
            "/system": self._system,
            "/tools": self._tools,
            "/set": self._set,
            "/reset": self._reset,
            "/seed": self._seed,
            "/retry": lambda rest: Next.RETRY,
            "/clear": self._clear,
            "/cls": lambda rest: Next.CLEAR_SCREEN,
            "/history": self._history,
            "/save": self._save,
            "/load": self._load,
            "/multi": lambda rest: Next.TOGGLE_MULTI,
            "/help": self._help,
            "/quit": lambda rest: Next.QUIT,
            "/exit": lambda rest: Next.QUIT,
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all commands."""
        return tuple(self._table)

    def run(self, line: str) -> Next:
        """Runs the command of a line that begins with a slash.

        Raises:
            ChatError: there is no such command, or it failed.
        """
        name, _, rest = line.strip().partition(" ")
        command = self._table.get(name)
        if command is None:
            near = difflib.get_close_matches(name, self.names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else "/help lists them."
            raise ChatError(f"There is no command {name}; {hint} To send it as a message, write /{name}.")
        return command(rest.strip())

    def _system(self, rest: str) -> Next:
        if rest:
            self._conversation.system = None if rest == "off" else rest
        self._say(f"system: {self._conversation.system or 'not set'}")
        return Next.NOTHING

    def _tools(self, rest: str) -> Next:
        if rest:
            self._conversation.tools = [] if rest == "off" else read_tools(as_path(rest))
        names = ", ".join(tool["function"].get("name", "?") for tool in self._conversation.tools)
        self._say(f"tools: {names or 'none'}")
        return Next.NOTHING

    def _set(self, rest: str) -> Next:
        settings = self._conversation.settings
        if rest:
            for name, value in parse_assignments(rest).items():
                settings[name] = value
                if value is None:
                    del settings[name]
        shown = " ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in settings.items())
        self._say(f"settings: {shown or 'the defaults of the server'}")
        return Next.NOTHING

    def _reset(self, rest: str) -> Next:
        self._conversation.settings.clear()
        return self._set("")

    def _seed(self, rest: str) -> Next:
        if rest:
            self._conversation.settings |= parse_assignments(f"seed={rest}")
        self._say(f"seed: {self._conversation.settings.get('seed', 'not set')}")
        return Next.NOTHING

    def _history(self, rest: str) -> Next:
        lines = []
        for message in self._conversation.messages:
            text = message.get("content") or ""
            lines.append(f"{message['role']}: {text if isinstance(text, str) else json.dumps(text)}".rstrip())
            functions = (call["function"] for call in message.get("tool_calls") or ())
            lines += [f"  → {function['name']} {function['arguments']}" for function in functions]
        self._say("\n".join(lines) or "nothing was said yet")
        return Next.NOTHING

    def _clear(self, rest: str) -> Next:
        self._conversation.clear()
        self._say("forgotten")
        return Next.NOTHING

    def _save(self, rest: str) -> Next:
        path = _path(rest, "/save")
        self._conversation.save(path)
        self._say(f"saved {len(self._conversation.messages)} messages to {path}")
        return Next.NOTHING

    def _load(self, rest: str) -> Next:
        path = _path(rest, "/load")
        self._conversation.load(path)
        self._say(f"loaded {len(self._conversation.messages)} messages from {path}")
        return Next.NOTHING

    def _help(self, rest: str) -> Next:
        width = max(map(len, HELP))
        self._say("\n".join(f"{usage.ljust(width)}  {text}" for usage, text in HELP.items()) + f"\n\n{KEYS}")
        return Next.NOTHING


def _path(rest: str, command: str) -> Path:
    if not rest:
        raise ChatError(f"Write {command} FILE.")
    return as_path(rest)
