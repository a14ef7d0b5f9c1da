"""`qwen-server merge`: finds checkpoint and adapter, then becomes the process that does the work (it needs torch)."""

from __future__ import annotations

import argparse

from server.hubs.download import download
from server.hubs.resolve import folder_here, resolve_checkpoint
from tools.command_line import become, to_argv
from tools.merge.options import add_arguments

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


def run(arguments: argparse.Namespace) -> int:
    """Starts `tools.merge.run` in the place of this process.

    Args:
        arguments: as parsed by `tools.merge.options` and `add_hub_arguments`; the revision is the checkpoint's.

    Raises:
        CheckpointError: there is no such checkpoint or adapter.
    """
    hub, name = arguments.hub, arguments.adapter
    adapter = folder_here(name, None) or download(name, _ADAPTER_FILES, hub=hub, revision=None)
    source = resolve_checkpoint(arguments.source, hub, arguments.revision)
    found = {"source": source, "adapter": adapter}
    return become("tools.merge.run", to_argv(add_arguments, {**vars(arguments), **found}))
