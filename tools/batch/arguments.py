"""The arguments of `qwen-server batch`. --help imports this file, so it must import nothing slow."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = (
    "Do the requests of a file (JSON a line, as for /v1/batches) and write their replies to another, in the same order."
    " A checkpoint is served for as long as it takes (`qwen-server batch IN OUT MODEL -- --dtype bfloat16` hands flags"
    " to it), or a server that runs is asked (--base-url). Interrupted, even killed, the same command goes on."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("input", metavar="IN", type=Path, help='lines of {"custom_id", "method", "url", "body"}')
    add("output", metavar="OUT", type=Path, help="file for the replies, a line each")
    add("checkpoint", metavar="MODEL", nargs="?", help="a folder or hub id to serve (default: as qwen-server serve)")
    parser.set_defaults(server_flags=[])
    add("--base-url", metavar="URL", help="of a server that does it instead, such as http://127.0.0.1:8000")
    add("--api-key", metavar="KEY", help="for it (default: the variable OPENAI_API_KEY)")
    add("--quiet", action="store_true", help="tell nothing of the progress")
