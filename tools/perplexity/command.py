"""`qwen-server perplexity`: finds the checkpoint, then becomes the process that does the work (it needs torch)."""

from __future__ import annotations

import argparse

from server.hubs.resolve import resolve_checkpoint
from tools.command_line import become, to_argv
from tools.perplexity.options import add_arguments


def run(arguments: argparse.Namespace) -> int:
    """Starts `tools.perplexity.run` in the place of this process.

    Args:
        arguments: as parsed by `tools.perplexity.options` and `add_hub_arguments`.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    source = resolve_checkpoint(arguments.source, arguments.hub, arguments.revision)
    return become("tools.perplexity.run", to_argv(add_arguments, {**vars(arguments), "source": source}))
