"""The flags of `qwen-server eval tools|chat`."""

from __future__ import annotations

import argparse
from pathlib import Path

from tools.command_line import positive

DESCRIPTION = "Asks a server the cases of a suite, temperature 0, and prints how many replies are right."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of both kinds of evaluation."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    tools = kinds.add_parser("tools", help="tool selection, Rouge-L of the arguments, false positives")
    chat = kinds.add_parser("chat", help="share of right replies")
    tools.add_argument(
        "--mode",
        choices=("tools", "functions"),
        default="tools",
        help="how tools are sent: as `tools`, or as the older `functions`",
    )
    for kind in (tools, chat):
        kind.add_argument("--base-url", default="http://127.0.0.1:8000/v1", help="of the server (default: %(default)s)")
        kind.add_argument("--suite", required=True, type=Path, metavar="FILE", help="cases, one JSON object a line")
        kind.add_argument("--model", help="name for requests (default: the first the server lists)")
        kind.add_argument("--api-key", help="of the server (default: OPENAI_API_KEY)")
        kind.add_argument("--concurrency", type=positive, default=8, help="open requests (default: %(default)s)")
        kind.add_argument("--max-tokens", type=positive, default=512, help="of a reply (default: %(default)s)")
        kind.add_argument("--limit", type=positive, help="every so-many-th case, so that this many are asked")
        kind.add_argument("--json", type=Path, metavar="FILE", help="also write figures and answers here")
