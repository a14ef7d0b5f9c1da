"""Two replicas on a local Ray: the same answers as one server, and only a dead replica's streams end."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.paths import ROOT
from tests.support.server_process import running_server

ray = pytest.importorskip("ray")
serve = pytest.importorskip("ray.serve")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]

SETTINGS = {"device": "cpu", "dtype": "float32", "threads": 1, "kv_cache_memory": "64MiB", "num_cpus": 0.5}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        logging_level="error",
        object_store_memory=100 << 20,
        runtime_env={"env_vars": environment},
    )
    try:
        serve.start(http_options={"port": port})
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def run(checkpoint: Path, **changes: Any) -> None:
    from server.ray_app import build

    serve.run(build({"model": str(checkpoint), "num_replicas": 2, **SETTINGS, **changes}), name="qwen")


def requests(number: int) -> list[dict[str, Any]]:
    texts = ["Hello!", "What is 3 + 4?", "What is the capital of France?", "你好", "Tell me a story."]
    bodies = []
    for index in range(number):
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": texts[index % len(texts)]}],
            "seed": index,
            "max_tokens": 12,
            "temperature": [0, 0.7, 1.2][index % 3],
            "stream": index % 4 == 3,
        }
        if index % 5 == 0:
            body |= {"logprobs": True, "top_logprobs": 2}
        if index % 7 == 0:
            body["n"] = 2
        bodies.append(body)
    return bodies


def said(base: str, body: dict[str, Any]) -> Any:
    response = httpx.post(f"{base}/v1/chat/completions", json=body, timeout=120, trust_env=False)
    assert response.status_code == 200, response.text
    if body["stream"]:
        lines = response.text.splitlines()
        assert lines[-2] == "data: [DONE]"
        choices = [choice for line in lines if "{" in line for choice in json.loads(line[6:])["choices"]]
        texts: dict[int, str] = {}
        for choice in choices:
            texts[choice["index"]] = texts.get(choice["index"], "") + (choice["delta"].get("content") or "")
        return texts, sorted(choice["finish_reason"] for choice in choices if choice["finish_reason"])
    return [(c["message"], c["finish_reason"], scores(c["logprobs"])) for c in response.json()["choices"]]


def scores(logprobs: dict[str, Any] | None) -> list[tuple[str, float]]:
    return [] if logprobs is None else [(entry["token"], round(entry["logprob"], 2)) for entry in logprobs["content"]]


def all_said(base: str, bodies: list[dict[str, Any]]) -> list[Any]:
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda body: said(base, body), bodies))


def per_replica(url: str, name: str) -> dict[str, float]:
    text = httpx.get(f"{url}/metrics", timeout=30, trust_env=False).text
    lines = [line for line in text.splitlines() if line.startswith(name + "{")]
    return {line.partition('replica="')[2].partition('"')[0]: float(line.rpartition(" ")[2]) for line in lines}


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.2)


def test_many_replicas_answer_as_one_server(url: str, demo_checkpoint: Path, tmp_path: Path) -> None:
    run(demo_checkpoint)
    bodies = requests(200)
    flags = ["--device", "cpu", "--dtype", "float32", "--threads", "1", "--kv-cache-memory", "64MiB"]
    with running_server(demo_checkpoint, tmp_path / "log", *flags) as server:
        alone = all_said(server.url, bodies)
    assert all_said(url, bodies) == alone
    until(lambda: sum(count > 20 for count in per_replica(url, "vllm:generation_tokens_total").values()) == 2)
    refused = httpx.post(f"{url}/v1/chat/completions", json={"messages": []}, timeout=30, trust_env=False)
    assert refused.status_code == 400 and refused.json()["error"]["type"] == "invalid_request_error"


def long_reply(text: str, num_tokens: int) -> dict[str, Any]:
    message = {"role": "user", "content": text}
    return {"messages": [message], "max_tokens": num_tokens, "min_tokens": num_tokens, "stream": True}


def stream_all(url: str, results: list[tuple[str, int]], number: int) -> None:
    body = {
        "messages": [{"role": "user", "content": str(number)}],
        "max_tokens": 1500,
        "stream": True,
        "min_tokens": 1500,
    }
    chunks = 0
    try:
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=120, trust_env=False) as response:
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    results.append(("done", chunks))
                    return
                if '"error"' in line:
                    break
                chunks += line.startswith("data:")
    except httpx.HTTPError:
        pass
    results.append(("error", chunks))


def streams(url: str, number: int) -> tuple[list[threading.Thread], list[tuple[str, int]]]:
    results: list[tuple[str, int]] = []
    threads = [threading.Thread(target=stream_all, args=(url, results, index)) for index in range(number)]
    for thread in threads:
        thread.start()
    return threads, results


def test_of_a_killed_replica_only_its_own_streams_end(url: str, demo_checkpoint: Path) -> None:
    run(demo_checkpoint)
    threads, results = streams(url, 12)
    until(lambda: sum(per_replica(url, "vllm:num_requests_running").values()) >= 12)
    running = per_replica(url, "vllm:num_requests_running")
    victim = max(running, key=lambda name: running[name])
    ray.kill(ray.get_actor(f"SERVE_REPLICA::qwen#qwen-server#{victim}", namespace="serve"))
    for thread in threads:
        thread.join()
    lost = [chunks for how, chunks in results if how == "error"]
    assert len(lost) == running[victim] and len(results) == 12
    assert all(how in ("done", "error") for how, _ in results)

    def is_replaced() -> bool:
        names = set(per_replica(url, "vllm:num_requests_running"))
        return len(names) == 2 and victim not in names

    until(is_replaced, 120)
    assert len(all_said(url, requests(20))) == 20


def test_scaling_down_ends_no_stream(url: str, demo_checkpoint: Path) -> None:
    run(demo_checkpoint, shutdown_timeout_s=300)
    threads, results = streams(url, 8)
    until(lambda: sum(per_replica(url, "vllm:num_requests_running").values()) >= 8)
    assert sum(count > 0 for count in per_replica(url, "vllm:num_requests_running").values()) == 2
    run(demo_checkpoint, num_replicas=1, shutdown_timeout_s=300)
    for thread in threads:
        thread.join()
    assert [how for how, _ in results] == ["done"] * 8
    until(lambda: len(per_replica(url, "vllm:num_requests_running")) == 1)


def test_conversations_find_their_cache(url: str, demo_checkpoint: Path) -> None:
    run(demo_checkpoint, route_by_prefix=True)
    hits = 0
    for number in range(12):
        messages = [{"role": "user", "content": f"My name is Anna and my number is {number}. " * 8}]
        for turn in range(3):
            body = {"messages": messages, "max_tokens": 4, "temperature": 0}
            reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60, trust_env=False).json()
            cached = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
            hits += turn > 0 and cached > 64
            messages += [reply["choices"][0]["message"], {"role": "user", "content": "And now?"}]
            messages[-2].pop("refusal", None)
    assert hits == 24
    until(lambda: all(count > 0 for count in per_replica(url, "vllm:prompt_tokens_total").values()))
    # Streams, refusals and leaving clients come through the front as well.
    assert all_said(url, requests(12))
    threads, results = streams(url, 2)
    for thread in threads:
        thread.join()
    assert [how for how, _ in results] == ["done"] * 2
    body = long_reply("x", 6000)
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60, trust_env=False) as response:
        next(response.iter_lines())
    until(lambda: sum(per_replica(url, "vllm:num_requests_running").values()) == 0)
