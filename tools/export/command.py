"""`qwen-server export`: finds the checkpoint, then becomes the process that does the work (it needs torch)."""

from __future__ import annotations

import os
from typing import Any

from server.hub import resolve_checkpoint
from server.run_module import module_command


def run(arguments: dict[str, Any]) -> int:
    """Starts `tools.export.run` in the place of this process.

    Args:
        arguments: as parsed by `tools.export.options` and `add_hub_arguments`.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    source = resolve_checkpoint(arguments["source"], arguments["hub"], arguments["revision"])
    words = [str(source), str(arguments["target"]), f"--type={arguments['weight_type']}"]
    command = module_command("tools.export.run", *words)
    os.execv(command[0], command)
