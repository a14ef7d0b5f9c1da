"""`qwen-server merge`: finds checkpoint and adapter, then becomes the process that does the work (it needs torch)."""

from __future__ import annotations

import argparse
import os
from typing import Any

from server.hub import folder_here, resolve_checkpoint
from server.hub_download import download
from server.run_module import module_command
from tools.merge.options import read_options, to_argv

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


def run(arguments: dict[str, Any]) -> int:
    """Starts `tools.merge.run` in the place of this process.

    Args:
        arguments: as parsed by `tools.merge.options` and `add_hub_arguments`; the revision is the checkpoint's.

    Raises:
        CheckpointError: there is no such checkpoint or adapter.
    """
    hub, revision, name = arguments.pop("hub"), arguments.pop("revision"), arguments["adapter"]
    adapter = folder_here(name, None) or download(name, _ADAPTER_FILES, hub=hub, revision=None)
    source = resolve_checkpoint(arguments["source"], hub, revision)
    options = read_options(argparse.Namespace(**arguments), source, adapter)
    command = module_command("tools.merge.run", *to_argv(options))
    os.execv(command[0], command)
