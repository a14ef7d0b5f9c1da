"""The demo checkpoints, with which the server can be tried without fetching one.

The wheel contains the first; the Int4 one is in the repository only.
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
    """Returns the folder of a demo checkpoint's name; the user's own folder of that name is `./NAME`."""
    folder = _FOLDERS.get(name)
    return folder if folder is not None and folder.is_dir() else None


def demo_name(folder: Path | None) -> str | None:
    """Returns the name of a demo checkpoint's folder, which must be a resolved path; None for other folders."""
    return next((name for name, ours in _FOLDERS.items() if ours == folder), None)
