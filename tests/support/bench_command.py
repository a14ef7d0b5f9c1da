"""Runs `qwen-server bench` in this process."""

from __future__ import annotations

import argparse

from tools.bench.arguments import add_arguments
from tools.bench.command import run


def main(argv: list[str]) -> int:
    """Returns the command's exit status."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(argv))
