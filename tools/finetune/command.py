"""`qwen-server finetune`: finds the checkpoint, then becomes the process that trains (it needs torch)."""

from __future__ import annotations

import argparse
import os
from typing import Any

from model.contract.checkpoint_folder import describe_file
from model.contract.errors import CheckpointError
from server.hub import local_folder, resolve_checkpoint
from server.run_module import module_command
from tools.finetune.options import read_options, to_argv


def run(arguments: dict[str, Any]) -> int:
    """Starts `tools.finetune.run` in the place of this process.

    Args:
        arguments: as parsed by `tools.finetune.options` and `add_hub_arguments`.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    name, hub, revision = arguments["model"], arguments.pop("hub"), arguments.pop("revision")
    folder = local_folder(name)
    if folder is None:
        folder = resolve_checkpoint(name, hub, revision)
    elif not folder.is_dir():
        raise CheckpointError(describe_file(folder))
    options = read_options(argparse.Namespace(**arguments), model=folder, model_name=name)
    command = module_command("tools.finetune.run", *to_argv(options), f"--model-name={name}")
    os.execv(command[0], command)
