"""The chat session at a terminal: reads input, shows replies as they arrive, and survives failed replies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.text import Text

from tools.chat.client import ChatClient, Reply
from tools.chat.commands import Commands, Next
from tools.chat.conversation import Conversation
from tools.chat.errors import ChatError
from tools.chat.markdown_stream import MarkdownStream, printable
from tools.chat.prompt import Prompt
from tools.chat.published_commands import translate

_ONE_LINE_CHARS = 60


class Session:
    """One chat.

    Args:
        context: limit of prompt and reply together, in tokens; None if the server does not report it.
    """

    def __init__(
        self,
        console: Console,
        client: ChatClient,
        conversation: Conversation,
        prompt: Prompt,
        commands: Commands,
        context: int | None,
    ) -> None:
        self._console = console
        self._client = client
        self._conversation = conversation
        self._prompt = prompt
        self._commands = commands
        self._context = context
        self._reply_task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Chats until the user leaves."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._stop_reply)
        try:
            with _keep_keys_for_the_prompt():
                await self._ask_and_take()
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    async def _ask_and_take(self) -> None:
        while True:
            try:
                text = await self._prompt.ask()
            except KeyboardInterrupt:
                self._note("Ctrl-D leaves.")
                continue
            except EOFError:
                return
            try:
                if not await self._take(text):
                    return
            except ChatError as error:
                self._complain(str(error))

    async def _take(self, text: str) -> bool:
        """Handles one input; returns False to end the chat."""
        if not text.strip():
            return True
        text = translate(text)
        if text.startswith("/") and not text.startswith("//"):
            match self._commands.run(text):
                case Next.QUIT:
                    return False
                case Next.TOGGLE_MULTI:
                    self._prompt.is_multi = not self._prompt.is_multi
                    keys = "Enter begins a new line, Esc Enter sends" if self._prompt.is_multi else "Enter sends"
                    self._note(keys)
                case Next.CLEAR_SCREEN:
                    self._console.clear()
                case Next.RETRY:
                    await self._retry()
            return True
        self._conversation.ask(text.removeprefix("/") if text.startswith("//") else text)
        await self._turn()
        return True

    async def _retry(self) -> None:
        conversation = self._conversation
        question = conversation.draft if conversation.draft is not None else conversation.take_back()
        if question is None:
            raise ChatError("There is no question yet to ask again.")
        self._note(f"again: {question}")
        conversation.ask(question)
        await self._turn()

    async def _turn(self) -> None:
        """Gets the answer to the last question, including tool calls on the way."""
        while True:
            reply, was_stopped = Reply(), False
            try:
                was_stopped = await self._receive(reply)
            except ChatError as error:
                self._conversation.take_back()
                self._complain(f"{error} Your question is not lost: /retry asks it again.")
                return
            if was_stopped:
                self._keep_stopped(reply)
                return
            self._conversation.answer(reply.content, reply.calls)
            if not reply.calls:
                return
            if not await self._ask_results(reply):
                self._conversation.take_back()
                self._note("the call is dropped; /retry asks the question again")
                return

    def _keep_stopped(self, reply: Reply) -> None:
        if reply.content.strip() and not reply.calls:
            self._conversation.answer(reply.content, [])
            self._note("stopped; /retry asks again")
        else:
            self._conversation.take_back()
            self._note("stopped before an answer; /retry asks again")

    async def _ask_results(self, reply: Reply) -> bool:
        """Asks for the result of each call; returns False if the user gives none."""
        for call in reply.calls:
            try:
                text = await self._prompt.ask_result(printable(call["function"]["name"]))
            except (KeyboardInterrupt, EOFError):
                return False
            self._conversation.add_result(call["id"], text)
        return True

    async def _receive(self, reply: Reply) -> bool:
        """Shows a reply as it arrives; returns whether the user stopped it."""

        async def show() -> None:
            async for _ in self._client.stream(self._conversation.body(), reply):
                view.update(reply.content, _calls(reply) if reply.calls else None)

        with MarkdownStream(self._console, hold=bool(self._conversation.tools)) as view:
            self._reply_task = asyncio.create_task(show())
            was_stopped = False
            try:
                await self._reply_task
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():  # the whole chat is being ended, not only the reply
                    raise
                was_stopped = True
            finally:
                self._reply_task = None
                view.end(is_thought=bool(reply.calls))
        if reply.calls:
            self._console.print(_calls(reply))
        if not was_stopped:
            self._console.print(Text(f"{self._statistics(reply)}\n", style="dim"))
        return was_stopped

    def _stop_reply(self) -> None:
        if self._reply_task is not None:
            self._reply_task.cancel()

    def _statistics(self, reply: Reply) -> str:
        count = reply.usage.get("completion_tokens")
        parts = [] if count is None else [f"{count} tokens"]
        if reply.first is not None and reply.last is not None:
            parts.append(f"first after {reply.first - reply.started:.2f} s")
            if count and count > 1 and reply.last > reply.first:
                parts.append(f"{(count - 1) / (reply.last - reply.first):.1f} tokens/s")
        if self._context and reply.usage.get("total_tokens"):
            parts.append(f"{reply.usage['total_tokens']} of {self._context} in the context")
        if reply.finish_reason == "length":
            parts.append("cut off: no room or max_tokens reached")
        return " · ".join(parts)

    def _note(self, text: str) -> None:
        self._console.print(Text(printable(text), style="dim"))

    def _complain(self, text: str) -> None:
        self._console.print(Text(printable(text), style="red"))


def _calls(reply: Reply) -> RenderableType:
    """Renders the calls of a reply; their arguments are formatted once they are complete."""
    shown = []
    for call in reply.calls:
        function = call["function"]
        try:
            value = json.loads(function["arguments"])
            arguments = json.dumps(value, ensure_ascii=False)
            if len(arguments) > _ONE_LINE_CHARS:
                arguments = json.dumps(value, ensure_ascii=False, indent=2)
        except ValueError:
            arguments = function["arguments"]
        shown.append(Text.assemble(("→ ", "yellow"), (printable(function["name"]), "bold yellow"), " "))
        shown[-1].append(printable(arguments), style="cyan")
    return Group(*shown)


@contextlib.contextmanager
def _keep_keys_for_the_prompt() -> Iterator[None]:
    """Keeps input that is typed between prompts for the next prompt, without echoing it.

    This lasts for the whole chat, as a key may arrive between the end of a reply and the next prompt.
    """
    try:
        import termios

        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (ImportError, OSError, ValueError, termios.error):
        yield
        return
    waiting = [*before]
    waiting[0] &= ~termios.ICRNL  # otherwise Enter arrives as Ctrl-J, which begins a new line
    waiting[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(descriptor, termios.TCSANOW, waiting)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
