"""Writes a checkpoint as a GGUF file: `python -m tools.export.run MODEL OUT.gguf`; `qwen-server export` is this module.

Tensor after tensor: what is in memory is one of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tqdm import tqdm

from model.contract.errors import ConfigError
from model.quantization.offline.gguf_export import export_gguf
from tools.export.options import add_arguments
from tools.process import log_written, parse_arguments, run_work


def export(source: Path, target: Path, weight_type: str) -> None:
    """Writes the file, with a progress bar and a closing line.

    Raises:
        StartupError: source or target cannot be used; nothing is left behind.
    """
    if target.exists():
        raise ConfigError(f"{target}: exists already; name a file that does not")
    if not target.absolute().parent.is_dir():
        raise ConfigError(f"{target}: there is no folder {target.absolute().parent}")
    with tqdm(unit="tensor", desc="writing") as bar:

        def show(name: str, total: int) -> None:
            bar.total = total
            bar.update()

        export_gguf(source, target, weight_type, show)
    log_written(target)


def main() -> int:
    """Runs the process and returns its exit status."""
    arguments = parse_arguments("tools.export.run", __doc__, add_arguments)
    return run_work(
        lambda: export(Path(arguments.source), arguments.target, arguments.weight_type),
        out_of_memory="it needs none but the machine's own",
    )


if __name__ == "__main__":
    sys.exit(main())
