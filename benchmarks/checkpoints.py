"""Random checkpoints of published shapes, made once and kept in benchmarks/.cache."""

from __future__ import annotations

from pathlib import Path

from demo import random_checkpoint

CACHE = Path(__file__).parent / ".cache"


def random_folder(shape: str) -> Path:
    """Returns the folder of the random checkpoint of a shape; makes it if it does not exist."""
    folder = CACHE / f"random-{shape}"
    if not (folder / "model.safetensors").exists():
        random_checkpoint.write(folder, random_checkpoint.SHAPES[shape])
    return folder
