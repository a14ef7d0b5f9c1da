"""The engine at the other end of a pipe: as a real process where that matters, else in a thread."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model.contract.engine_config import EngineConfig
from model.contract.errors import RestartNeededError
from model.contract.framing import MAX_FRAME_BYTES, frame
from model.contract.messages import (
    Abort,
    EngineFailed,
    EngineReady,
    EngineStats,
    Ping,
    Shutdown,
    StepOutputs,
    decode_to_engine,
    encode,
)
from model.loop.connection import Connection, ConnectionClosed
from model.loop.process import run
from server.run_module import module_command
from tests.support.engine_process import PROMPT, EngineProcess, Peer, make_config, request
from tests.support.paths import ROOT

# --- in a process of its own


def test_a_life_that_ends_with_its_server(tiny_checkpoint: Path) -> None:
    with EngineProcess(make_config(tiny_checkpoint)) as engine:
        ready = engine.receive_start()
        assert isinstance(ready, EngineReady), ready
        assert (ready.max_model_len, ready.vocab_size, ready.device) == (256, 300, "cpu")
        engine.send(request(0, PROMPT))
        first = engine.ids_of(0)
        assert len(first) == 5
        # Ctrl-C goes to the whole group; when to end is the server's decision.
        engine.process.send_signal(signal.SIGINT)
        engine.send(request(1, PROMPT))
        assert engine.ids_of(1) == first
        assert engine.process.poll() is None
        # It must notice in the middle of work, too.
        engine.send(*(request(seq_id, [5] * 20, max_tokens=200, ignore_eos=True) for seq_id in range(2, 40)))
        while engine.receive().stats.num_running < 38:
            pass
        closed = time.monotonic()
        engine.socket.close()
        assert engine.process.wait(timeout=10) == 0
        assert time.monotonic() - closed < 2
        assert engine.process.stderr is not None
        assert engine.process.stderr.read() == ""


def test_told_to_end_in_the_middle_of_work(tiny_checkpoint: Path) -> None:
    with EngineProcess(make_config(tiny_checkpoint)) as engine:
        assert isinstance(engine.receive_start(), EngineReady)
        engine.send(request(0, PROMPT, max_tokens=240, ignore_eos=True))
        engine.receive()
        engine.send(Shutdown())
        assert engine.process.wait(timeout=10) == 0


def test_a_checkpoint_that_cannot_be_served(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with EngineProcess(make_config(tmp_path)) as engine:
        failed = engine.receive_start()
        assert isinstance(failed, EngineFailed)
        assert failed.is_startup_error
        assert failed.message.startswith(f"{tmp_path}/config.json: model_type is 'llama'")
        assert engine.process.wait(timeout=10) == 1
        with pytest.raises(ConnectionClosed):
            engine.receive()


# --- the same loop in a thread


class EngineThread(Peer):
    """`run` on the other end of a socket pair."""

    def __init__(self, config: EngineConfig) -> None:
        ours, theirs = socket.socketpair()
        super().__init__(ours)
        self._theirs = theirs
        self._config = config
        self.result: int | type[BaseException] | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self.socket.sendall(encode(config))

    def _run(self) -> None:
        with self._theirs:
            try:
                self.result = run(Connection(self._theirs, decode_to_engine))
            except ConnectionClosed:
                self.result = ConnectionClosed

    def close(self) -> None:
        self.socket.close()
        self.thread.join(timeout=10)
        assert not self.thread.is_alive()


@pytest.fixture
def engine(tiny_checkpoint: Path) -> Iterator[EngineThread]:
    thread = EngineThread(make_config(tiny_checkpoint))
    assert isinstance(thread.receive_start(), EngineReady)
    yield thread
    thread.close()


def test_an_abort_frees_everything_and_is_answered_with_the_new_state(engine: EngineThread) -> None:
    engine.send(request(0, PROMPT, max_tokens=240, ignore_eos=True), request(1, PROMPT, max_tokens=200))
    while engine.receive().stats.num_running < 2:
        pass
    engine.send(Abort((0, 1, 77)))
    stats = engine.wait_until_idle()
    assert stats.num_free_blocks == stats.num_blocks
    engine.send(request(2, PROMPT))
    assert len(engine.ids_of(2)) == 5


def test_a_lone_abort_of_nothing_is_answered(engine: EngineThread) -> None:
    engine.send(Abort((5,)))
    assert engine.receive().outputs == []


def test_a_ping_is_answered(engine: EngineThread) -> None:
    engine.send(Ping())
    assert engine.receive().outputs == []


def test_a_request_and_its_abort_in_one_write(engine: EngineThread) -> None:
    engine.send(request(0, PROMPT), Abort((0,)), request(1, PROMPT))
    message = engine.receive()
    assert all(output.seq_id == 1 for output in message.outputs)
    assert len(engine.ids_of(1)) == 4, "the first was in the first message"


def test_a_prompt_that_is_too_long_arrives_in_pieces_and_is_refused(engine: EngineThread) -> None:
    """70,000 tokens are more than a socket takes at once; nothing is said before all of it is there."""
    data = encode(request(0, [299] * 70_000))
    for start in range(0, len(data), 50_000):
        engine.socket.sendall(data[start : start + 50_000])
        time.sleep(0.01)
    message = engine.receive()
    assert [output.finish_reason for output in message.outputs] == ["error"]
    assert "70000 tokens" in message.outputs[0].error


def test_frames_cut_anywhere(engine: EngineThread) -> None:
    data = encode(request(0, PROMPT)) + encode(request(1, PROMPT))
    for i in range(len(data)):
        engine.socket.sendall(data[i : i + 1])
    first = engine.ids_of(0)
    assert len(first) == 5


def test_shutdown(engine: EngineThread) -> None:
    engine.send(Shutdown())
    engine.thread.join(timeout=10)
    assert engine.result == 0


def test_a_server_that_goes_away_while_it_is_idle(engine: EngineThread) -> None:
    engine.close()
    assert engine.result is ConnectionClosed


@pytest.mark.parametrize("data", [frame(b"\x91\xa8nonsense"), frame(b"nonsense")])
def test_a_message_that_is_none_ends_the_engine_with_a_word(engine: EngineThread, data: bytes) -> None:
    engine.socket.sendall(data)
    failed = engine.receive()
    assert isinstance(failed, EngineFailed)
    assert not failed.is_startup_error
    assert "\n" not in failed.message
    engine.thread.join(timeout=10)
    assert engine.result == 1


def test_a_length_that_cannot_be_ends_the_connection(engine: EngineThread) -> None:
    engine.socket.sendall(struct.pack("<I", MAX_FRAME_BYTES + 1))
    engine.thread.join(timeout=10)
    assert engine.result is ConnectionClosed


def test_a_fault_in_a_step_is_told(engine: EngineThread, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(self: object) -> StepOutputs:
        raise RuntimeError("CUDA error: an illegal memory access\nand much more")

    monkeypatch.setattr("model.loop.engine.Engine.step", step)
    engine.send(request(0, PROMPT))
    assert engine.receive() == EngineFailed("the engine failed: CUDA error: an illegal memory access", False)
    engine.thread.join(timeout=10)
    assert engine.result == 1


def test_a_fault_at_the_start_that_is_nobodys_mistake(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, *_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("model.loop.engine.Engine.__init__", fail)
    engine = EngineThread(make_config(tiny_checkpoint))
    assert engine.receive() == EngineFailed("the engine failed to start: MemoryError", False)
    engine.close()
    assert engine.result == 1


def test_a_start_that_another_one_would_not_need(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, *_: object) -> None:
        raise RestartNeededError("silu_mul broke the device; starting again without it")

    monkeypatch.setattr("model.loop.engine.Engine.__init__", fail)
    engine = EngineThread(make_config(tiny_checkpoint))
    assert engine.receive() == EngineFailed("silu_mul broke the device; starting again without it", False, True)
    engine.close()
    assert engine.result == 1


# --- the connection alone


def test_an_idle_engine_sends_nothing_for_half_a_frame() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = Connection(theirs, decode_to_engine)
        received: list[Any] = []
        thread = threading.Thread(target=lambda: received.extend(connection.receive_all(block=True)))
        thread.start()
        data = encode(Abort((1, 2, 3)))
        ours.sendall(data[:7])
        thread.join(timeout=0.1)
        assert thread.is_alive(), "woken by half a frame"
        ours.sendall(data[7:])
        thread.join(timeout=10)
        assert received == [Abort((1, 2, 3))]


def test_many_frames_in_one_read_keep_their_order() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"".join(encode(Abort((i,))) for i in range(500)))
        assert Connection(theirs, decode_to_engine).receive_all(block=True) == [Abort((i,)) for i in range(500)]
        assert Connection(theirs, decode_to_engine).receive_all(block=False) == []


def test_a_descriptor_beyond_what_select_can_watch() -> None:
    """The engine inherits its descriptor's number from a server that may hold a thousand connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2000:
        pytest.skip("so many descriptors are not to be had here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    ours, theirs = socket.socketpair()
    try:
        number = fcntl.fcntl(theirs.fileno(), fcntl.F_DUPFD, 1500)
        with socket.socket(fileno=number) as high:
            connection = Connection(high, decode_to_engine)
            ours.sendall(encode(Shutdown()))
            connection.wait(1)
            assert connection.receive_all(block=False) == [Shutdown()]
    finally:
        ours.close()
        theirs.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_was_said_before_the_end_is_heard() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.sendall(encode(Abort((1,))) + encode(Shutdown()))
        ours.close()
        connection = Connection(theirs, decode_to_engine)
        assert connection.receive_all(block=True) == [Abort((1,)), Shutdown()]
        for block in (True, False):
            with pytest.raises(ConnectionClosed):
                connection.receive_all(block=block)


def test_sending_to_nobody() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs, pytest.raises(ConnectionClosed):
        for _ in range(3):
            Connection(theirs, decode_to_engine).send(StepOutputs([], EngineStats()))


def test_no_descriptor_no_engine() -> None:
    read_end, write_end = os.pipe()
    os.close(write_end)
    os.close(read_end)
    result = subprocess.run(
        module_command("model.loop.process"), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "--fd" in result.stderr
