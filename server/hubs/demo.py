"""The checkpoints that come along, to try the server with before one's own is at hand.

The wheel has the first; the Int4 one is in the repository only.
"""

from __future__ import annotations

from pathlib import Path

DEMO = "qwen-demo"
_FOLDER = Path(__file__).resolve().parents[2] / "demo"
_FOLDERS = {DEMO: _FOLDER / "checkpoint", f"{DEMO}-int4": _FOLDER / "checkpoint-int4"}
ABOUT = (
    "a demo of 6 million parameters: it chats a little, does sums and calls tools, and knows next to nothing;"
    " for your own, qwen-server serve MODEL"
)


def demo_folder(name: str) -> Path | None:
    """Returns the folder that a name of ours stands for; a folder of the caller's with that name is `./NAME`."""
    folder = _FOLDERS.get(name)
    return folder if folder is not None and folder.is_dir() else None


def demo_name(folder: Path | None) -> str | None:
    """Returns what a checkpoint of ours is called, whichever way its folder was named.

    Args:
        folder: with all links followed.
    """
    return next((name for name, ours in _FOLDERS.items() if ours == folder), None)
