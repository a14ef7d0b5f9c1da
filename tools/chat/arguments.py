"""The arguments of `qwen-server chat`. --help imports this file, so it must import nothing slow."""

from __future__ import annotations

import argparse
from pathlib import Path

DEFAULT_BASE_URL = "http://127.0.0.1:8000"
DESCRIPTION = (
    "Chat with a server, or with a checkpoint: one is then served for as long as the chat lasts (`qwen-server chat"
    " MODEL -- --dtype bfloat16` hands flags to it). `echo question | qwen-server chat` prints the reply alone. Inside,"
    " /help lists the commands."
)


def split_server_flags(words: list[str]) -> tuple[list[str], list[str]]:
    """Splits the words of a `chat` or `batch` command at `--`, as argparse allows no optional arguments on both sides.

    Returns:
        The words for argparse, and the flags for the server that the command starts.
    """
    if words[:1] not in (["chat"], ["batch"]) or "--" not in words:
        return words, []
    place = words.index("--")
    return words[:place], words[place + 1 :]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("checkpoint", metavar="MODEL", nargs="?", help="a folder or hub id to serve for this chat")
    parser.set_defaults(server_flags=[])
    add("--base-url", metavar="URL", help=f"of a server (default: the variable OPENAI_BASE_URL, or {DEFAULT_BASE_URL})")
    add("--model", metavar="NAME", help="name to ask for (default: the first the server lists)")
    add("--api-key", metavar="KEY", help="sent as a bearer token (default: the variable OPENAI_API_KEY)")
    add("--system", metavar="TEXT", help="what the model is told to be")
    add("--tools", type=Path, metavar="FILE", help="JSON list of functions that the model may call")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="of each request, as temperature=0.2")
    add("--load", type=Path, metavar="FILE", help="go on with a conversation that /save wrote")
    add("--timeout-s", type=float, default=600.0, metavar="S", help="longest silence of the server (default: 600)")
    add("--history", type=Path, metavar="FILE", help="of what was typed (default: in ~/.local/state/qwen-server)")
