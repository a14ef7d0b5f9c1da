"""The soak of benchmarks/soak, a few seconds of each part; the long ones are marked slow."""

from __future__ import annotations

import pytest

from benchmarks.soak.faults import kill_rounds, overload
from benchmarks.soak.malformed import malformed
from benchmarks.soak.memory import soak
from benchmarks.soak.promises import broken_promises
from benchmarks.soak.server import SoakServer
from benchmarks.soak.tenants import flags, tenants
from tests.faults.conftest import StartServer

# A busy machine says little about latencies: they are measured by the soak itself, on a quiet one.
TIMINGS = {"the admitted are served as fast", "refusing is quick", "it is back soon", "first tokens come soon"}


@pytest.mark.parametrize(("rounds", "streams"), [(2, 32), pytest.param(20, 64, marks=pytest.mark.slow)])
async def test_an_engine_that_is_killed_again_and_again(start_server: StartServer, rounds: int, streams: int) -> None:
    server = start_server()
    figures = await kill_rounds(server, rounds=rounds, streams=streams, max_tokens=100)
    assert not set(broken_promises("kill", figures)) - TIMINGS, figures
    assert "SIGKILL" in server.log()
    assert "Traceback" not in server.log()


@pytest.mark.parametrize("seconds", [1, pytest.param(60, marks=pytest.mark.slow)])
async def test_more_load_than_it_can_carry(start_server: StartServer, seconds: int) -> None:
    server = start_server("--max-num-seqs", "8", "--max-queue-requests", "8")
    figures = await overload(server, concurrency=8, seconds=seconds, max_tokens=24)
    assert not set(broken_promises("overload", figures)) - TIMINGS, figures
    assert figures["admitted"] and figures["refused"]


@pytest.mark.parametrize("count", [200, pytest.param(5000, marks=pytest.mark.slow)])
async def test_nonsense(plain_server: SoakServer, count: int) -> None:
    figures = await malformed(plain_server, requests=count, concurrency=16, seed=count)
    assert not broken_promises("malformed", figures), figures
    assert figures["statuses"]["400"] > count / 2


@pytest.mark.parametrize(("seconds", "scale"), [(0.4, 0.05), pytest.param(10, 1.0, marks=pytest.mark.slow)])
async def test_one_who_asks_for_all_it_may_and_another(start_server: StartServer, seconds: float, scale: float) -> None:
    server = start_server(*flags(), "--max-num-seqs", "256" if scale == 1 else "4")
    figures = await tenants(server, seconds=seconds, scale=scale, only=() if scale == 1 else ("choices",))
    assert not set(broken_promises("tenants", figures)) - TIMINGS, figures
    assert not any(load["greedy_had_ended"] for load in figures["loads"].values())


@pytest.mark.slow
async def test_memory_stays_flat(start_server: StartServer) -> None:
    server = start_server()
    figures = await soak(server, requests=20_000, first=5000)
    assert not broken_promises("memory", figures), figures


async def test_every_kind_of_request_and_clients_that_leave(plain_server: SoakServer) -> None:
    figures = await soak(plain_server, requests=120, first=60, cancelled=0.2)
    assert not figures["problems"]
    assert figures["cancelled"] > 5
    assert figures["fds"][1] <= figures["fds"][0] + 1
