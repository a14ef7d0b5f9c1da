"""The circumstances that figures need to mean something, and the output of a benchmark."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from server.version import server_version


def circumstances() -> dict[str, Any]:
    """Returns the commit, torch's version, the processor and its present load."""
    return {
        "commit": server_version().commit,
        "torch": torch.__version__,
        "processor": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "load_average": os.getloadavg()[0],
    }


def print_figures(figures: dict[str, Any], path: Path | None) -> None:
    """Prints the figures as JSON, and writes them to a file if one is named."""
    text = json.dumps(figures, indent=2)
    print(text)
    if path is not None:
        path.write_text(text + "\n")
