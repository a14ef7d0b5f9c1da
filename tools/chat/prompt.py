"""The input prompt: multi-line editing, a persistent history, completion of commands and file names."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

_TAKES_A_FILE = ("/tools ", "/save ", "/load ")


class Prompt:
    """Reads input from the terminal.

    Args:
        history: earlier input.
        commands: completions after a slash.
        settings: completions after /set.

    Attributes:
        is_multi: Enter begins a new line and Esc Enter sends, instead of the other way round.
    """

    def __init__(self, history: History, commands: Iterable[str], settings: Iterable[str]) -> None:
        self.is_multi = False
        keys = self._keys()
        completer = _Completer(tuple(commands), tuple(settings))
        self._session: PromptSession[str] = PromptSession(
            history=history, multiline=True, key_bindings=keys, completer=completer, complete_while_typing=False
        )
        self._result_session: PromptSession[str] = PromptSession(
            history=InMemoryHistory(), multiline=True, key_bindings=keys
        )

    async def ask(self) -> str:
        """Returns the user's input.

        Raises:
            KeyboardInterrupt: Ctrl-C.
            EOFError: Ctrl-D on an empty line.
        """
        return await self._read(self._session, "bold ansigreen", "you> ")

    async def ask_result(self, name: str) -> str:
        """Returns the result of a call, typed by the user; raises the same as `ask`."""
        return await self._read(self._result_session, "bold ansiyellow", f"result of {name}> ")

    async def _read(self, session: PromptSession[str], style: str, label: str) -> str:
        typed = await session.prompt_async(
            FormattedText([(style, label)]), prompt_continuation="   … ", handle_sigint=False
        )
        # Pasted bytes that are not UTF-8 become lone surrogates, which cannot be sent.
        return typed.encode("utf-8", errors="replace").decode()

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("enter")
        def _enter(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if self.is_multi and not _is_command(buffer.text):
                buffer.insert_text("\n")
            elif buffer.document.char_before_cursor == "\\" and buffer.document.is_cursor_at_the_end:
                buffer.delete_before_cursor()
                buffer.insert_text("\n")
            else:
                buffer.validate_and_handle()

        @keys.add("escape", "enter")
        def _alt_enter(event: KeyPressEvent) -> None:
            if self.is_multi:
                event.current_buffer.validate_and_handle()
            else:
                event.current_buffer.insert_text("\n")

        @keys.add("c-j")
        def _newline(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        return keys


def _is_command(text: str) -> bool:
    return text.startswith("/") and not text.startswith("//") and "\n" not in text


class _Completer(Completer):
    def __init__(self, commands: tuple[str, ...], settings: tuple[str, ...]) -> None:
        self._commands = commands
        self._settings = settings
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Yields the completions of the text before the cursor."""
        text = document.text_before_cursor
        if not text.startswith("/"):
            return
        if text.startswith(_TAKES_A_FILE):
            path = text.split(" ", 1)[1]
            yield from self._paths.get_completions(Document(path), complete_event)
        elif text.startswith("/set "):
            word = text.rsplit(" ", 1)[1]
            yield from (Completion(f"{n}=", -len(word)) for n in self._settings if n.startswith(word))
        elif " " not in text:
            yield from (Completion(command, -len(text)) for command in self._commands if command.startswith(text))


def open_history(path: Path | None) -> tuple[History, str | None]:
    """Opens the history of input, in a file (None: the default one) that only its owner may read.

    Returns:
        The history, and a message if it will not be kept.
    """
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    file = path or state / "qwen-server" / "chat-history"
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
    except OSError as error:
        return InMemoryHistory(), f"The history will not be kept: cannot write {file} ({error.strerror})."
    return FileHistory(str(file)), None
