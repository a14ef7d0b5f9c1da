"""Starts the tools that work on checkpoints: finds what they need, then becomes the process that does the work.

Those processes need torch, which no command imports. Arguments are as parsed by the tool's `options` and
`add_hub_arguments`; what cannot be found is a CheckpointError.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import ModuleType

from model.contract.errors import CheckpointError
from model.contract.files.checkpoint_folder import describe_file
from server.hubs.download import download
from server.hubs.resolve import folder_here, local_folder, resolve_checkpoint
from tools.command_line import become, to_argv
from tools.convert import options as convert_options
from tools.export import options as export_options
from tools.finetune import options as finetune_options
from tools.merge import options as merge_options
from tools.perplexity import options as perplexity_options
from tools.quantize import options as quantize_options

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


def _become(options: ModuleType, arguments: Namespace, *more: str, **found: Path) -> int:
    argv = to_argv(options.add_arguments, {**vars(arguments), **found})
    return become(options.__name__.replace(".options", ".run"), [*argv, *more])


def _source(arguments: Namespace) -> Path:
    return resolve_checkpoint(arguments.source, arguments.hub, arguments.revision)


def quantize(arguments: Namespace) -> int:
    """Becomes `tools.quantize.run`."""
    return _become(quantize_options, arguments, source=_source(arguments))


def export(arguments: Namespace) -> int:
    """Becomes `tools.export.run`."""
    return _become(export_options, arguments, source=_source(arguments))


def perplexity(arguments: Namespace) -> int:
    """Becomes `tools.perplexity.run`."""
    return _become(perplexity_options, arguments, source=_source(arguments))


def convert(arguments: Namespace) -> int:
    """Becomes `tools.convert.run`; a folder may be in either layout."""
    source = folder_here(arguments.source, arguments.revision) or _source(arguments)
    return _become(convert_options, arguments, source=source)


def merge(arguments: Namespace) -> int:
    """Becomes `tools.merge.run`; the revision is the checkpoint's."""
    name = arguments.adapter
    adapter = folder_here(name, None) or download(name, _ADAPTER_FILES, hub=arguments.hub, revision=None)
    return _become(merge_options, arguments, source=_source(arguments), adapter=adapter)


def finetune(arguments: Namespace) -> int:
    """Becomes `tools.finetune.run`; a folder may be in either layout."""
    name = arguments.model
    folder = local_folder(name)
    if folder is None:
        folder = resolve_checkpoint(name, arguments.hub, arguments.revision)
    elif not folder.is_dir():
        raise CheckpointError(describe_file(folder))
    return _become(finetune_options, arguments, f"--model-name={name}", model=folder)
