"""`qwen-server chat`: finds or starts a server, then chats on the terminal or answers a question from a pipe."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from server.hubs.demo import ABOUT, DEMO
from tools.chat.arguments import DEFAULT_BASE_URL
from tools.chat.client import ChatClient, Reply
from tools.chat.commands import Commands
from tools.chat.conversation import Conversation, read_tools
from tools.chat.errors import ChatError
from tools.chat.markdown_stream import printable
from tools.chat.own_server import OwnServer
from tools.chat.settings import NAMES, parse_assignments

_INTERRUPTED = 130


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    try:
        question = None if sys.stdin.isatty() else _read_question()
        if question is None and not sys.stdout.isatty():
            raise ChatError("The output is not a terminal. Pipe the question in: echo question | qwen-server chat")
        return asyncio.run(_run(arguments, question))
    except ChatError as error:
        print(f"qwen-server chat: {printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED
    except asyncio.CancelledError:  # ended by a signal; everything is closed by now
        return 128 + signal.SIGTERM


async def _run(arguments: argparse.Namespace, question: str | None) -> int:
    _end_on_signals()
    async with contextlib.AsyncExitStack() as stack:
        client = await _find_server(arguments, stack)
        stack.push_async_callback(client.close)
        models = await client.models()
        conversation = Conversation(arguments.model or models[0]["id"])
        _prepare(conversation, arguments)
        if question is not None:
            await _answer(client, conversation, question)
            return 0
        context = next((m.get("max_model_len") for m in models if m["id"] == conversation.model), None)
        await _talk(arguments, client, conversation, context if isinstance(context, int) else None)
        return 0


def _end_on_signals() -> None:
    """Makes SIGTERM and SIGHUP (a closed terminal) end the chat cleanly, together with its server."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)


def _read_question() -> str:
    text = sys.stdin.buffer.read().decode("utf-8", errors="replace").strip()
    if not text:
        raise ChatError("There is no question on standard input.")
    return text


async def _find_server(arguments: argparse.Namespace, stack: contextlib.AsyncExitStack) -> ChatClient:
    """Returns a client of the given server, or of a new one that ends with the stack."""
    if arguments.checkpoint is None:
        if arguments.server_flags:
            raise ChatError("Flags after -- are for a server of this chat: name its MODEL too.")
        base_url = arguments.base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL
        return ChatClient(base_url, arguments.api_key or os.environ.get("OPENAI_API_KEY"), arguments.timeout_s)
    if arguments.base_url is not None:
        raise ChatError("Give either a MODEL to serve or the --base-url of a server; --model names one of its models.")
    own = OwnServer(arguments.checkpoint, arguments.server_flags)
    stack.callback(own.stop)
    console = Console(stderr=True)
    with console.status(Text(f"loading {arguments.checkpoint}")) as status:
        waiting = asyncio.create_task(own.wait_ready())
        try:
            while not (await asyncio.wait({waiting}, timeout=1))[0]:
                status.update(Text(f"loading {arguments.checkpoint} {own.progress()}"))
        finally:
            waiting.cancel()
    waiting.result()
    return ChatClient(own.url, own.api_key, arguments.timeout_s, own.why_it_ended)


def _prepare(conversation: Conversation, arguments: argparse.Namespace) -> None:
    if arguments.load is not None:
        conversation.load(arguments.load)
    if arguments.system is not None:
        conversation.system = arguments.system
    if arguments.tools is not None:
        conversation.tools = read_tools(arguments.tools)
    for text in arguments.set:
        for name, value in parse_assignments(text).items():
            if value is not None:
                conversation.settings[name] = value


async def _answer(client: ChatClient, conversation: Conversation, question: str) -> None:
    """Prints the reply to one question as it arrives, and nothing else."""
    conversation.ask(question)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    clean: Any = printable if sys.stdout.isatty() else str
    reply, num_printed = Reply(), 0
    try:
        async for _ in client.stream(conversation.body(), reply):
            sys.stdout.write(clean(reply.content[num_printed:]))
            sys.stdout.flush()
            num_printed = len(reply.content)
        for call in reply.calls:
            sys.stdout.write(clean(f"\n{call['function']['name']}({call['function']['arguments']})"))
        if not (reply.content.endswith("\n") and not reply.calls):
            sys.stdout.write("\n")
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ChatError:
        sys.stdout.write("\n" if num_printed else "")
        raise


async def _talk(
    arguments: argparse.Namespace, client: ChatClient, conversation: Conversation, context: int | None
) -> None:
    from tools.chat.prompt import Prompt, open_history
    from tools.chat.session import Session

    console = Console(highlight=False)
    history, complaint = open_history(arguments.history)

    def say(text: str) -> None:
        console.print(Text(printable(text), style="dim"))

    commands = Commands(conversation, say)
    prompt = Prompt(history, commands.names, NAMES)
    name = conversation.model.rstrip("/").rsplit("/", 1)[-1]  # the last part of a folder or hub id
    say(f"{name} at {client.url}. /help lists the commands, Ctrl-D leaves.")
    if name.startswith(DEMO):
        say(f"{name} is {ABOUT}.")
    if conversation.messages:
        say(f"going on after {len(conversation.messages)} messages")
    if complaint is not None:
        say(complaint)
    await Session(console, client, conversation, prompt, commands, context).run()
