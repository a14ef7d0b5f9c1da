"""`qwen-server serve` that ends when its standard input does: the server of one chat. own_server starts it."""

from __future__ import annotations

import os
import signal
import sys
import threading

from server.__main__ import main


def _end_with_parent() -> None:
    # Nothing is ever sent: reading returns when the chat has closed its end, or has died.
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, name="end with the chat", daemon=True).start()
    sys.exit(main(["serve", *sys.argv[1:]]))
