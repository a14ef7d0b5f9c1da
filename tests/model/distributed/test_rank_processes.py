"""Ranks as processes: they start together, end together, and whatever becomes of one of them is told in a sentence."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, cast

import pytest

from model.contract.messages import EngineFailed, EngineReady, Ping, encode
from model.loop import rank_leader, rank_process
from model.loop.connection import Connection, ConnectionClosed
from model.loop.rank_leader import RankLeader
from tests.support.engine_process import EngineProcess, make_config, request
from tests.support.golden import MAX_MODEL_LEN, read_cases
from tests.support.paths import GOLDEN, ROOT

FOLDER = "gptq_int4_asym_desc_act"


def start(**changes: Any) -> EngineProcess:
    settings = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "max_model_len": MAX_MODEL_LEN, **changes}
    return EngineProcess(make_config(GOLDEN / FOLDER, **settings))


def ranks_of(leader: int) -> list[int]:
    children = Path(f"/proc/{leader}/task/{leader}/children").read_text()
    return [int(pid) for pid in children.split()]


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.02)
    raise AssertionError(f"process {pid} still runs")


def test_a_rank_looks_for_garbage_once_it_has_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The leader forks it while nothing is looked for."""
    seen = []

    class Gone:
        def receive(self) -> None:
            seen.append(gc.isenabled())
            raise ConnectionClosed

    class FakeWorker:
        follow = None

        def __init__(self, *_: object) -> None:
            seen.append(gc.isenabled())

    for name in ("configure_logging", "_show_signs_of_life", "join_group"):
        monkeypatch.setattr(rank_process, name, lambda *_: None)
    monkeypatch.setattr(rank_process, "Worker", FakeWorker)
    monkeypatch.setattr(gc, "freeze", lambda: None)  # what is a test's does not stay
    gc.disable()
    try:
        assert rank_process.run_rank(make_config(GOLDEN / FOLDER), 1, cast(Any, Gone()), Path("store")) == 0
    finally:
        gc.enable()
    assert seen == [False, True]


def test_the_published_replies_and_a_rank_that_is_killed_amid_a_step() -> None:
    with start() as engine:
        assert isinstance(engine.receive_start(), EngineReady)
        for i, case in enumerate(read_cases(FOLDER)):
            engine.send(request(i, case.prompt, max_tokens=len(case.greedy)))
            assert engine.ids_of(i) == case.greedy
        follower, *others = ranks_of(engine.process.pid)
        assert len(others) == 2
        engine.send(request(100, [5] * 20, max_tokens=250, ignore_eos=True))
        engine.receive()
        os.kill(follower, signal.SIGKILL)
        while not isinstance(message := engine.receive(), EngineFailed):
            pass
        assert message.message == "rank 1 ended unexpectedly (SIGKILL (out of memory, or by hand))"
        assert not message.is_startup_error
        assert engine.process.wait(30) == 1
        for pid in (follower, *others):
            wait_until_gone(pid)


def test_no_rank_outlives_its_leader() -> None:
    """Not even one that waits for tensors, and reads no socket."""
    code = """
import os, time
from model.loop.child_process import die_with_parent
reader, writer = os.pipe()
if os.fork() == 0:
    die_with_parent()
    os.write(writer, b"x")
else:
    os.read(reader, 1)
    print(open(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read(), flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as leader:
        assert leader.stdout is not None
        rank = int(leader.stdout.readline())
        leader.kill()
        wait_until_gone(rank)


class Watched:
    """A leader's watch over a process that only pretends to be a rank."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, max_silence_s: float) -> None:
        monkeypatch.setattr(rank_leader, "MAX_SILENCE_S", max_silence_s)
        monkeypatch.setattr(rank_leader, "SIGN_OF_LIFE_S", 0.01)
        monkeypatch.setattr(rank_leader, "_LAST_WORDS_S", 0.0)
        self.failures: list[EngineFailed] = []
        self.process = subprocess.Popen(["sleep", "60"])
        self.ours, self.theirs = socket.socketpair()
        leader = self.leader = RankLeader.__new__(RankLeader)
        leader._on_failed, leader._is_serving, leader._has_failed = self.failures.append, True, threading.Event()
        connection = Connection(self.ours, rank_leader._REPORTS.decode)
        leader._followers = [rank_leader._Follower(1, self.process.pid, connection)]

    def watch(self) -> EngineFailed:
        with self.ours, self.theirs:
            self.leader._watch()
        assert self.process.wait(30) != 0, "it must not stay behind"
        (failed,) = self.failures
        return failed


def test_a_rank_that_falls_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, 0.05)
    watched.theirs.sendall(encode(Ping()))
    assert watched.watch().message == "rank 1 hung: it gave no sign of life for 0.05 s"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (EngineFailed("CUDA error", False), EngineFailed("rank 1 failed: CUDA error", False)),
        (EngineFailed("a kernel broke the device", False, True),
         EngineFailed("rank 1 failed: a kernel broke the device", False, True)),
        (EngineFailed("no memory for a KV cache", True), EngineFailed("no memory for a KV cache", True)),
    ],
)  # fmt: skip
def test_a_rank_that_says_why_it_cannot_go_on(
    monkeypatch: pytest.MonkeyPatch, said: EngineFailed, told: EngineFailed
) -> None:
    watched = Watched(monkeypatch, 60)
    watched.theirs.sendall(encode(Ping()) + encode(said))
    assert watched.watch() == told


def test_a_rank_that_sends_what_is_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, 60)
    monkeypatch.setattr(rank_leader, "_EXIT_GRACE_S", 0.0)
    watched.theirs.sendall(b"\xff\xff\xff\xff nonsense")
    assert "rank 1 ended unexpectedly" in watched.watch().message
