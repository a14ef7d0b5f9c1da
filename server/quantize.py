"""`qwen-server quantize`: finds the checkpoint, then becomes the process that does the work (it needs torch)."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from model.quantize_options import read_options, to_argv
from server.hub import resolve_checkpoint


def run(arguments: dict[str, Any]) -> int:
    """Starts `model.quantize` in the place of this process.

    Args:
        arguments: as parsed by `model.quantize_options`.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    source = resolve_checkpoint(arguments["source"])
    options = read_options(argparse.Namespace(**arguments), source)
    package_root = str(Path(__file__).resolve().parents[1])
    paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    os.execve(sys.executable, [sys.executable, "-m", "model.quantize", *to_argv(options)], environ)
