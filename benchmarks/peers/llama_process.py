"""llama.cpp in a process of its own, with the weights loaded; the client of llama_peer.py."""

from __future__ import annotations

import argparse
import json
import subprocess
from typing import Any

from benchmarks.checkpoints import random_folder
from server.run_module import module_command

QUANTIZATIONS = ("bf16", "q4_0", "q8_0")


class LlamaPeer:
    """Starts the process. llama.cpp quantises the unquantised checkpoint of the same shape in its own way.

    Args:
        arguments: has `shape`, the flags of `add_arguments` and perhaps `kv_cache_dtype`.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        folder = random_folder(arguments.shape.partition("-")[0])
        command = module_command("benchmarks.peers.llama_peer", str(folder), python=arguments.llama_python)
        command += ["--quantization", arguments.llama_quantization]
        if getattr(arguments, "kv_cache_dtype", "auto") == "int8":
            command += ["--kv", "q8_0"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **request: Any) -> float:
        """Calls a method of `llama_peer.Peer` (`do` is its name) and returns its figure."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):
                return float(json.loads(line)["figure"])
        raise SystemExit("the llama.cpp process has ended")


def add_arguments(parser: argparse.ArgumentParser, quantization: str) -> None:
    """Adds the flags of the peer, with the default of the quantization."""
    parser.add_argument("--llama-python", help="a Python with llama-cpp-python and gguf: measure llama.cpp too")
    parser.add_argument("--llama-quantization", choices=QUANTIZATIONS, default=quantization)
