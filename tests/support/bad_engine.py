"""An engine that misbehaves as its `device` setting says; what a real one does only by accident."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import struct
import sys
import time
from pathlib import Path

from model.contract.engine_config import EngineConfig
from model.contract.framing import frame
from model.contract.messages import (
    Abort,
    AddRequest,
    EngineFailed,
    EngineReady,
    EngineStats,
    Ping,
    SequenceOutput,
    Shutdown,
    StepOutputs,
    decode_to_engine,
    encode,
)


def read_frame(sock: socket.socket) -> bytes:
    (length,) = struct.unpack("<I", sock.recv(4, socket.MSG_WAITALL))
    return sock.recv(length, socket.MSG_WAITALL)


def serve_in_the_last_life(sock: socket.socket, lives: Path, num_deaths: int) -> None:
    """Dies of its first request as often as told; then answers each with its prompt, a token a step."""
    with lives.open("a") as file:
        file.write("x")
    is_mortal = len(lives.read_text()) <= num_deaths
    while True:
        message = decode_to_engine(read_frame(sock))
        match message:
            case Shutdown():
                return
            case Ping() | Abort():
                sock.sendall(encode(StepOutputs([], EngineStats())))
            case AddRequest():
                if is_mortal:
                    print("2026-01-01 00:00:00,000 INFO engine: a line of the log", file=sys.stderr, flush=True)
                    os.kill(os.getpid(), signal.SIGKILL)
                for seq_id in message.seq_ids:
                    for token_id in message.prompt_ids:
                        sock.sendall(encode(StepOutputs([SequenceOutput(seq_id, [token_id])], EngineStats())))
                    sock.sendall(encode(StepOutputs([SequenceOutput(seq_id, [], "stop")], EngineStats())))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int)
    sock = socket.socket(fileno=parser.parse_args().fd)
    config = decode_to_engine(read_frame(sock))
    assert isinstance(config, EngineConfig)
    mode, _, number = config.device.partition(":")
    ready = encode(EngineReady(100, 512, 1, 16, 1, 1, "float32", "none"))
    if mode == "silent":
        time.sleep(60)
    elif mode == "refuses":
        sock.sendall(encode(EngineFailed("no such checkpoint", True)))
        sys.exit(1)
    elif mode == "again":
        lives = Path(config.checkpoint_path)
        lives.write_text(lives.read_text() + "x" if lives.exists() else "x")
        if len(lives.read_text()) <= int(number):
            sock.sendall(encode(EngineFailed("a kernel broke the device", False, wants_restart=True)))
            sys.exit(1)
        sock.sendall(ready)
        serve_in_the_last_life(sock, lives, 0)
    elif mode == "crashes":
        sock.sendall(ready)
        print("something snapped\n", file=sys.stderr, flush=True)
        sys.exit(3)
    elif mode == "mortal":
        sock.sendall(ready)
        serve_in_the_last_life(sock, Path(config.checkpoint_path), int(number))
    elif mode == "mute":
        sock.sendall(ready)
        while not isinstance(decode_to_engine(read_frame(sock)), Shutdown):
            sock.sendall(encode(StepOutputs([], EngineStats())))
    elif mode == "hangs":
        sock.sendall(ready)
        read_frame(sock)
        sock.sendall(encode(StepOutputs([], EngineStats())))
        time.sleep(60)
    elif mode == "stopped":
        sock.sendall(ready)
        os.kill(os.getpid(), signal.SIGSTOP)
    elif mode == "garbage":
        sock.sendall(ready)
        read_frame(sock)
        sock.sendall(frame(b"[nope"))
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
