"""An engine that says what a script has it say: the n-th request gets the n-th text, byte by byte.

For loops of agents, which need a model that answers sensibly; everything but the model is real.
"""

from __future__ import annotations

import argparse
import json
import socket
from pathlib import Path

from model.contract.engine_config import EngineConfig
from model.contract.messages import (
    Abort,
    AddRequest,
    EngineReady,
    EngineStats,
    Ping,
    SequenceOutput,
    Shutdown,
    StepOutputs,
    decode_to_engine,
    encode,
)
from tests.support.bad_engine import read_frame

MAX_MODEL_LEN = 1 << 16


def main() -> None:
    """The process: reads its script from `checkpoint_path`, and writes the prompts it got beside it, a JSON a line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int)
    sock = socket.socket(fileno=parser.parse_args().fd)
    config = decode_to_engine(read_frame(sock))
    assert isinstance(config, EngineConfig)
    script = Path(config.checkpoint_path)
    replies = json.loads(script.read_text())
    sock.sendall(encode(EngineReady(MAX_MODEL_LEN, 512, 1, 16, 1, 1, "float32", "none")))
    while True:
        message = decode_to_engine(read_frame(sock))
        match message:
            case Shutdown():
                return
            case Ping() | Abort():
                sock.sendall(encode(StepOutputs([], EngineStats())))
            case AddRequest():
                text = bytes(i for i in message.prompt_ids if i < 256).decode(errors="replace")
                with script.with_suffix(".prompts").open("a") as file:
                    file.write(json.dumps(text) + "\n")
                reply = replies.pop(0).encode() if replies else b"That was all."
                for seq_id in message.seq_ids:
                    for byte in reply:
                        sock.sendall(encode(StepOutputs([SequenceOutput(seq_id, [byte])], EngineStats())))
                    sock.sendall(encode(StepOutputs([SequenceOutput(seq_id, [], "stop")], EngineStats())))


if __name__ == "__main__":
    main()
