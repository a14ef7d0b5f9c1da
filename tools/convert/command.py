"""`qwen-server convert`: finds the checkpoint, then becomes the process that does the work (it needs torch)."""

from __future__ import annotations

import argparse
import os
from typing import Any

from server.hub import folder_here, resolve_checkpoint
from server.run_module import module_command
from tools.convert.options import read_options, to_argv


def run(arguments: dict[str, Any]) -> int:
    """Starts `tools.convert.run` in the place of this process.

    Args:
        arguments: as parsed by `tools.convert.options` and `add_hub_arguments`.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    model, hub, revision = arguments["source"], arguments.pop("hub"), arguments.pop("revision")
    source = folder_here(model, revision) or resolve_checkpoint(model, hub, revision)
    options = read_options(argparse.Namespace(**arguments), source)
    command = module_command("tools.convert.run", *to_argv(options))
    os.execv(command[0], command)
