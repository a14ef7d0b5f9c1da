"""Addresses and ports, the errors for those that cannot be listened on, and the signals that end the server."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import pytest
import uvicorn
from fastapi import FastAPI

from model.contract.errors import ConfigError
from server.engine.supervisor import EngineState
from server.listening import address_to_open, addresses_of, open_listeners
from server.serve import DrainingServer

HAS_IPV6 = socket.has_ipv6
try:
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
except OSError:
    HAS_IPV6 = False


def listen(host: str, port: int = 0) -> list[socket.socket]:
    return open_listeners(host, port, send_timeout_s=60)


@pytest.mark.parametrize("host", ["localhost", "LocalHost"])
def test_localhost_is_both_families_on_one_port(host: str) -> None:
    with ExitStack() as opened:
        listeners = [opened.enter_context(listener) for listener in listen(host)]
        port = listeners[0].getsockname()[1]
        reached = ["127.0.0.1", *(["::1"] if HAS_IPV6 else [])]
        for address in reached:
            socket.create_connection((address, port), timeout=5).close()
        shown = ["127.0.0.1", *(["[::1]"] if HAS_IPV6 else [])]
        assert addresses_of(listeners, "http") == [f"http://{address}:{port}" for address in shown]
        with pytest.raises(ConfigError, match=f"cannot listen on {host}:{port}: .* choose another --port"):
            listen(host, port)


def test_a_port_taken_in_one_family_only_is_taken() -> None:
    if not HAS_IPV6:
        pytest.skip("no IPv6 here")
    with socket.socket(socket.AF_INET6) as other:
        other.bind(("::1", 0))
        other.listen()
        with pytest.raises(ConfigError, match="in use"):
            listen("localhost", other.getsockname()[1])


@pytest.mark.parametrize("address", ["127.0.0.1", *(["::1", "::"] if HAS_IPV6 else []), "0.0.0.0"])
def test_an_address_is_itself(address: str) -> None:
    (listener,) = listen(address)
    with listener:
        assert listener.getsockname()[0] == address
        host = {"::": "[::1]", "0.0.0.0": "127.0.0.1", "::1": "[::1]"}.get(address, address)
        assert address_to_open([listener], "https") == f"https://{host}:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("999.1.1.1", "no such address"),
        ("no-such-host.invalid", "no such address"),
        ("a" * 300, "no such address"),
        ("a..b", "no such address"),
        ("192.0.2.1", "not an address of this machine"),
        ("2001:db8::1", "not an address of this machine"),
    ],
)
def test_another_port_is_no_advice_where_the_host_is_at_fault(host: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        listen(host)
    assert "another --port" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_port_in_use_fits_make(monkeypatch: pytest.MonkeyPatch) -> None:
    (listener,) = listen("127.0.0.1")
    with listener:
        port = listener.getsockname()[1]
        monkeypatch.delenv("MAKELEVEL", raising=False)
        with pytest.raises(ConfigError, match=r"choose another --port$"):
            listen("127.0.0.1", port)
        monkeypatch.setenv("MAKELEVEL", "1")
        with pytest.raises(ConfigError, match="make serve PORT="):
            listen("127.0.0.1", port)


class IdleEngine:
    state = EngineState.LOADING

    def drain(self) -> None: ...

    def stop_at_once(self) -> None: ...

    def fail_open_requests(self, reason: str) -> None: ...


class NobodyInside:
    num_inside = 0


@pytest.mark.parametrize("num_signals", [1, 2, 3])
@pytest.mark.parametrize("is_starting", [True, False])
async def test_signals_in_a_row_end_it_orderly(
    num_signals: int, is_starting: bool, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[str] = []
    entered = asyncio.Event()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        entered.set()
        await asyncio.sleep(0)
        yield
        events.append("closed")

    (listener,) = listen("127.0.0.1")
    config = uvicorn.Config(FastAPI(lifespan=lifespan), log_config=None, lifespan="on")
    engine, admission = IdleEngine(), NobodyInside()
    server = DrainingServer(config, engine, admission, drain_delay_s=0, shutdown_timeout_s=5)  # type: ignore[arg-type]
    with listener, caplog.at_level(logging.WARNING):
        running = asyncio.create_task(server.serve([listener]))
        await entered.wait()
        while not is_starting and not server.started:
            await asyncio.sleep(0)
        for _ in range(num_signals):
            server.handle_exit(signal.SIGTERM, None)
            while not server.should_exit:  # the next one comes when the end has begun
                await asyncio.sleep(0)
        await running
    assert events == ["closed"]
    assert not caplog.records
