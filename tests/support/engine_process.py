"""The engine's process, spoken to as the server does."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import Any

from model.contract.engine_config import EngineConfig
from model.contract.messages import (
    AddRequest,
    EngineFailed,
    EngineReady,
    EngineStats,
    LoadProgress,
    SequenceOutput,
    StepOutputs,
    decode_from_engine,
    encode,
)
from model.contract.sampling_params import SamplingParams
from model.loop.connection import Connection
from server.run_module import module_command
from tests.support.paths import ROOT

PROMPT = [9, 3, 200, 41, 41, 7]


def make_config(checkpoint: Path, **changes: Any) -> EngineConfig:
    settings = {"device": "cpu", "dtype": "float32", "num_threads": 1, "kv_cache_memory_bytes": 16 << 20}
    return EngineConfig(checkpoint_path=str(checkpoint), log_level="error", **{**settings, **changes})


def request(seq_id: int, prompt: list[int], **sampling: Any) -> AddRequest:
    params = SamplingParams(**{"max_tokens": 5, "temperature": 0.0, **sampling})
    return AddRequest(seq_ids=(seq_id,), request_id=str(seq_id), prompt_ids=prompt, sampling=params)


class Peer:
    """The server's end of the pipe."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(60)
        self.socket = sock
        self._connection = Connection(sock, decode_from_engine)
        self._messages: list[Any] = []

    def send(self, *messages: Any) -> None:
        self.socket.sendall(b"".join(encode(message) for message in messages))

    def receive(self) -> Any:
        while not self._messages:
            self._messages = self._connection.receive_all(block=True)
        return self._messages.pop(0)

    def receive_start(self) -> EngineReady | EngineFailed:
        """What the load ends in."""
        while isinstance(message := self.receive(), LoadProgress):
            assert message.loaded_bytes <= message.total_bytes
        assert isinstance(message, EngineReady | EngineFailed)
        return message

    def outputs_of(self, seq_id: int) -> list[SequenceOutput]:
        """All outputs of a sequence up to its last; those of others are dropped."""
        outputs: list[SequenceOutput] = []
        while not outputs or outputs[-1].finish_reason is None:
            message = self.receive()
            assert isinstance(message, StepOutputs)
            outputs += [output for output in message.outputs if output.seq_id == seq_id]
        return outputs

    def ids_of(self, seq_id: int) -> list[int]:
        return [token_id for output in self.outputs_of(seq_id) for token_id in output.token_ids]

    def wait_until_idle(self) -> EngineStats:
        while True:
            message = self.receive()
            if message.stats.num_running == message.stats.num_waiting == 0:
                return message.stats


class EngineProcess(Peer):
    """`python -m model.loop.process`, told its settings."""

    def __init__(self, config: EngineConfig) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                module_command("model.loop.process", "--fd", str(theirs.fileno())),
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
                text=True,
            )
        super().__init__(ours)
        self.socket.sendall(encode(config))

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.process.kill()
        self.process.communicate()
