"""Replicas on Ray Serve beside a plain server: `python -m benchmarks.replicas demo/checkpoint --rounds 5`.

Each round measures, in turns, the server alone, one replica, two, and two behind a front that routes by prefix: tokens
a second of streamed chats, and the time to the first token. Needs the extra `ray`. On a machine with as many cores as
one engine uses, two replicas share them: what is measured is then what Ray costs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from benchmarks.figures import circumstances
from benchmarks.soak.server import soak_server

ROOT = Path(__file__).parents[1]


async def _chat(http: httpx.AsyncClient, number: int, max_tokens: int) -> float:
    """Streams a reply and returns the seconds to its first token."""
    body = {
        "messages": [{"role": "user", "content": f"Tell me a story about the number {number}."}],
        "max_tokens": max_tokens,
        "min_tokens": max_tokens,
        "stream": True,
    }
    begin = time.perf_counter()
    first = 0.0
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if '"content":' in line and '"role"' not in line:
                first = first or time.perf_counter() - begin
    return first


async def _load(url: str, clients: int, requests: int, max_tokens: int) -> tuple[float, float]:
    """Returns (tokens a second, median seconds to the first token)."""
    firsts: list[float] = []
    numbers = iter(range(requests))
    async with httpx.AsyncClient(base_url=url, timeout=300, trust_env=False) as http:

        async def client() -> None:
            for number in numbers:
                first = await _chat(http, number, max_tokens)
                firsts.append(first)

        begin = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return requests * max_tokens / (time.perf_counter() - begin), statistics.median(firsts)


def _wait(url: str) -> None:
    for _ in range(600):
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url + "/ready", timeout=5, trust_env=False).status_code == 200:
                return
        time.sleep(0.1)
    raise SystemExit(f"{url} did not become ready")


def _start_ray() -> str:
    """Starts Ray and its HTTP proxy; returns the address."""
    import ray
    from ray import serve

    environment = {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    ray.init(include_dashboard=False, logging_level="error", num_cpus=8, runtime_env={"env_vars": environment})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"port": port})
    return f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def _serving(arguments: argparse.Namespace, ray_url: str, changes: dict[str, Any] | None) -> Iterator[str]:
    """Yields the address of a plain server, or of one on Ray Serve with these settings."""
    model = str(Path(arguments.model).resolve())
    if changes is None:
        flags = ["--threads", str(arguments.threads), "--kv-cache-memory", "256MiB"]
        with tempfile.TemporaryDirectory() as folder, soak_server(model, Path(folder) / "log", *flags) as server:
            yield server.url.geturl()
        return
    from ray import serve

    from server.ray_app import build

    settings = {"model": model, "threads": arguments.threads, "kv_cache_memory": "256MiB", "num_cpus": 0.5}
    serve.run(build({**settings, "log_level": "warning", **changes}), name="qwen")
    try:
        _wait(ray_url)
        yield ray_url
    finally:
        serve.delete("qwen")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    ray_url = _start_ray()
    ways: dict[str, dict[str, Any] | None] = {
        "the server alone": None,
        "1 replica": {"num_replicas": 1},
        "2 replicas": {"num_replicas": 2},
        "2 replicas, by prefix": {"num_replicas": 2, "route_by_prefix": True},
    }
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, changes in ways.items():
            with _serving(arguments, ray_url, changes) as url:
                asyncio.run(_load(url, arguments.clients, arguments.clients * 2, arguments.max_tokens))
                load = _load(url, arguments.clients, arguments.requests, arguments.max_tokens)
                seen[name].append(asyncio.run(load))
    alone = statistics.median(rate for rate, _ in seen["the server alone"])
    print(f"{circumstances()}, {arguments.clients} streams at a time")
    print("| | tokens/s | over the server alone | first token, ms |\n|---|---|---|---|")
    for name, figures in seen.items():
        rate = statistics.median(figure[0] for figure in figures)
        first = statistics.median(figure[1] for figure in figures)
        print(f"| {name} | {rate:.0f} | {rate / alone:.2f} | {first * 1000:.0f} |")


if __name__ == "__main__":
    main()
