"""`qwen-server finetune`: finds the checkpoint, then becomes the process that trains (it needs torch)."""

from __future__ import annotations

import argparse

from model.contract.errors import CheckpointError
from model.contract.files.checkpoint_folder import describe_file
from server.hubs.resolve import local_folder, resolve_checkpoint
from tools.command_line import become, to_argv
from tools.finetune.options import add_arguments


def run(arguments: argparse.Namespace) -> int:
    """Starts `tools.finetune.run` in the place of this process.

    Args:
        arguments: as parsed by `tools.finetune.options` and `add_hub_arguments`.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    name = arguments.model
    folder = local_folder(name)
    if folder is None:
        folder = resolve_checkpoint(name, arguments.hub, arguments.revision)
    elif not folder.is_dir():
        raise CheckpointError(describe_file(folder))
    argv = to_argv(add_arguments, {**vars(arguments), "model": folder})
    return become("tools.finetune.run", [*argv, f"--model-name={name}"])
