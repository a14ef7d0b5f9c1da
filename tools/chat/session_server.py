"""Runs `qwen-server serve` until standard input is closed; started by own_server.py."""

from __future__ import annotations

import os
import signal
import sys
import threading

from server.__main__ import main


def _end_with_parent() -> None:
    # Nothing is ever written to it: reading returns when the parent closes its end or dies.
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, name="end with the chat", daemon=True).start()
    sys.exit(main(["serve", *sys.argv[1:]]))
