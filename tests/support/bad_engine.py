"""An engine that misbehaves as its `device` setting says; what a real one does only by accident."""

from __future__ import annotations

import argparse
import socket
import sys
import time

from model.engine_config import EngineConfig
from model.messages import FRAME_HEADER, EngineFailed, EngineReady, EngineStats, SequenceOutput, StepOutputs, encode


def read_frame(sock: socket.socket) -> bytes:
    (length,) = FRAME_HEADER.unpack(sock.recv(FRAME_HEADER.size, socket.MSG_WAITALL))
    return sock.recv(length, socket.MSG_WAITALL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int)
    sock = socket.socket(fileno=parser.parse_args().fd)
    mode = EngineConfig.from_json(read_frame(sock)).device
    ready = encode(EngineReady(100, 512, 1, 16, 1, 1, "float32", "none", 0.0))
    if mode == "silent":
        time.sleep(60)
    elif mode == "refuses":
        sock.sendall(encode(EngineFailed("no such checkpoint", True)))
        sys.exit(1)
    elif mode == "crashes":
        sock.sendall(ready)
        sys.exit(3)
    elif mode == "garbage":
        sock.sendall(ready)
        read_frame(sock)
        sock.sendall(FRAME_HEADER.pack(5) + b"[nope")
        while sock.recv(1024):
            pass
    elif mode == "half":
        sock.sendall(ready)
        read_frame(sock)
        step = encode(StepOutputs([SequenceOutput(1, [65]), SequenceOutput(2, [66], "length")], EngineStats()))
        for byte in step:  # a frame may arrive in any pieces
            sock.sendall(bytes([byte]))
        sock.sendall(step[: len(step) // 2])


if __name__ == "__main__":
    main()
