"""`qwen-server doctor`: finds the checkpoint's numbers, then becomes the process that looks at the device."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from server.hubs.download import add_hub_arguments
from tools.command_line import become

_USUAL = "qwen-7b"
DESCRIPTION = (
    "Prints versions and devices, tries and times the kernels, and says what to do about what is not well. The status"
    " is 1 where something does not work."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="look at the kernels that this checkpoint runs: a folder, a hub id, or a published shape such as"
        f" qwen-7b-int4 (default: all kernels, in the shapes of {_USUAL})",
    )
    add_hub_arguments(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda[:N], xpu[:N] or mps (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Starts `tools.doctor` in the place of this process; its status is 1 where something does not work.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    from tools.memory.published_shapes import published_shape
    from tools.memory.report import find_checkpoint

    name = arguments.model
    config, shape = published_shape(_USUAL), f"in the shapes of {_USUAL}"
    if name is not None:
        checkpoint = find_checkpoint(name, arguments.hub, arguments.revision)
        config, shape = checkpoint.config, f"in the shapes of {checkpoint.name}"
    assert config is not None
    words = ["--config", json.dumps(asdict(config)), "--shape", shape, "--device", arguments.device]
    words += ["--given"] * (name is not None) + ["--json"] * arguments.json
    return become("tools.doctor", words)
