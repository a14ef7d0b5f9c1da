"""An engine without a model, which emits one token per step for every request at a steady pace.

It is for measuring what the HTTP process spends on tokens, which starts it like any other engine.
"""

from __future__ import annotations

import argparse
import selectors
import socket
import time

from model.contract.engine_config import EngineConfig
from model.contract.framing import FrameSplitter
from model.contract.messages import (
    Abort,
    AddRequest,
    EngineReady,
    EngineStats,
    SequenceOutput,
    Shutdown,
    StepOutputs,
    decode_to_engine,
    encode,
)

STEP_S = 0.01
_TOKENS = b"Nobody had opened the lighthouse door for a winter, and the air tasted of salt. "


class Fountain:
    """The engine process; the socket leads to the server."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._splitter = FrameSplitter()
        self._left: dict[int, int] = {}
        self._num_steps = 0

    def run(self) -> None:
        """Emits tokens until the server sends `Shutdown`."""
        selector = selectors.DefaultSelector()
        selector.register(self._sock, selectors.EVENT_READ)
        due = time.monotonic()
        while True:
            wait_s = max(0.0, due - time.monotonic()) if self._left else None
            if selector.select(wait_s) and not self._receive():
                return
            if self._left and time.monotonic() >= due:
                due = time.monotonic() + STEP_S
                self._sock.sendall(encode(self._step()))

    def _receive(self) -> bool:
        data = self._sock.recv(1 << 20)
        for payload in self._splitter.push(data):
            match decode_to_engine(payload):
                case EngineConfig():
                    self._sock.sendall(encode(EngineReady(1 << 16, 512, 100, 16, 1, 1, "float32", "none")))
                case AddRequest(seq_ids=seq_ids, sampling=sampling):
                    self._left |= dict.fromkeys(seq_ids, sampling.max_tokens)
                case Abort(seq_ids=seq_ids):
                    for seq_id in seq_ids:
                        self._left.pop(seq_id, None)
                case Shutdown():
                    return False
                case _:
                    self._sock.sendall(encode(StepOutputs([], EngineStats())))
        return bool(data)

    def _step(self) -> StepOutputs:
        self._num_steps += 1
        outputs = []
        for seq_id in list(self._left):
            self._left[seq_id] -= 1
            reason = None if self._left[seq_id] else "length"
            token_id = _TOKENS[(self._num_steps + seq_id) % len(_TOKENS)]
            outputs.append(SequenceOutput(seq_id, [token_id], reason, num_cached_tokens=0, queue_time_s=0.0))
            if reason is not None:
                del self._left[seq_id]
        return StepOutputs(outputs, EngineStats(num_running=len(self._left), num_steps_total=self._num_steps))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="An engine without a model; started by the server.")
    parser.add_argument("--fd", type=int, required=True)
    Fountain(socket.socket(fileno=parser.parse_args().fd)).run()
