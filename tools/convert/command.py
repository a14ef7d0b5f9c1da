"""`qwen-server convert`: finds the checkpoint, then becomes the process that does the work (it needs torch)."""

from __future__ import annotations

import argparse

from server.hubs.resolve import folder_here, resolve_checkpoint
from tools.command_line import become, to_argv
from tools.convert.options import add_arguments


def run(arguments: argparse.Namespace) -> int:
    """Starts `tools.convert.run` in the place of this process.

    Args:
        arguments: as parsed by `tools.convert.options` and `add_hub_arguments`.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    model, revision = arguments.source, arguments.revision
    source = folder_here(model, revision) or resolve_checkpoint(model, arguments.hub, revision)
    return become("tools.convert.run", to_argv(add_arguments, {**vars(arguments), "source": source}))
