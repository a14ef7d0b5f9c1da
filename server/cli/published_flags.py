"""Flags of the published scripts (openai_api.py, cli_demo.py, web_demo.py), and what to write instead.

People come here with the command line they had; each of its flags has a counterpart, so the whole line is translated.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

# Our flags for theirs that take a value.
_VALUES = {"-c": "MODEL", "--checkpoint-path": "MODEL", "--server-port": "--port", "--server-name": "--host"}
_SWITCHES: dict[str, tuple[str, ...]] = {
    "--cpu-only": ("--device", "cpu"),
    "--disable-gc": (),
    "--share": (),
    "--inbrowser": (),
}
_DEFAULT_CHECKPOINT = "Qwen/Qwen-7B-Chat"


def translate(words: Sequence[str]) -> str | None:
    """Returns a sentence with the command line to use; None where no flag is one of the published scripts'.

    Args:
        words: the command line after `qwen-server`, with or without `serve`.
    """
    rest = list(words[1:] if words[:1] == ["serve"] else words)
    if rest and not rest[0].startswith("-") and not names_checkpoint(rest[0]):
        return None  # another command, which may have flags of these names
    model, flags, foreign = "", [], []
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if name in _VALUES:
            foreign.append(name)
            if not equals:
                value = rest.pop(0) if rest else ""
            if _VALUES[name] == "MODEL":
                model = value
            else:
                flags += [_VALUES[name], value]
        elif name in _SWITCHES:
            foreign.append(name)
            flags += _SWITCHES[name]
        elif not model and not flags and not name.startswith("-"):
            model = name + equals + value
        else:
            flags.append(name + equals + value)
    if not foreign:
        return None
    plural = len(foreign) > 1
    if not model and not any(map(names_checkpoint, flags)):
        model = _DEFAULT_CHECKPOINT  # theirs
    command = shlex.join(["qwen-server", "serve", *([model] if model else []), *flags])
    dropped = [name for name in foreign if _SWITCHES.get(name) == ()]
    reason = f" ({', '.join(dropped)} {'have' if len(dropped) > 1 else 'has'} nothing to do here)" if dropped else ""
    what = "are flags" if plural else "is a flag"
    return f"{', '.join(foreign)} {what} of the published scripts; use: {command}{reason}"


def names_checkpoint(word: str) -> bool:
    """Whether a word, where a command would stand, is a checkpoint: a folder, a GGUF file, or owner/name."""
    return "/" in word or word.lower().endswith(".gguf") or Path(word).expanduser().is_dir()
