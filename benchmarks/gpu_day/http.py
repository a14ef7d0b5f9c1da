"""The embedded checkpoint, or a shape with random weights, over HTTP on a device: a server, and `qwen-server bench`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.checkpoints import random_folder
from benchmarks.soak.server import soak_server
from demo import random_checkpoint
from server.run_module import module_command

CHECKPOINT = Path(__file__).resolve().parents[2] / "demo" / "checkpoint"


def main() -> int:
    """The command; its status is that of the load."""
    parser = argparse.ArgumentParser(description="Throughput over HTTP on a device.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=sorted(random_checkpoint.SHAPES), help="random weights (default: embedded)")
    parser.add_argument("--concurrency", nargs="+", default=["1", "16", "64", "256"])
    parser.add_argument("--max-tokens", default="128")
    parser.add_argument("--json", type=Path, required=True, help="write the levels here")
    arguments = parser.parse_args()
    checkpoint = CHECKPOINT if arguments.shape is None else random_folder(arguments.shape)
    with tempfile.TemporaryDirectory() as name:
        figures, log = Path(name) / "figures.json", Path(name) / "log"
        with soak_server(str(checkpoint), log, "--device", arguments.device) as server:
            load = ["--base-url", server.url.geturl(), "--ignore-eos", "--max-tokens", arguments.max_tokens]
            load += ["--json", str(figures), "--concurrency", *arguments.concurrency]
            status = subprocess.run(module_command("server", "bench", *load), check=False).returncode
        print(log.read_text()[-3000:])
        if figures.exists():
            arguments.json.write_text(json.dumps(json.loads(figures.read_text())["levels"], indent=1) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
