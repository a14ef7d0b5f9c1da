"""/v1/batches: each line is done exactly once, whatever happens to the server meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.store.errors import StoreFullError
from server.store.records import Append
from tests.support.light_server import LightServer, light_server
from tests.support.paths import ROOT
from tests.support.server_process import ServerProcess

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
Json = dict[str, Any]


def line(number: int, url: str = COMPLETION, **body: Any) -> Json:
    default: Json = {"prompt": f"{number}"} if url == COMPLETION else {"messages": [{"role": "user", "content": "hi"}]}
    return {"custom_id": f"id {number}", "method": "POST", "url": url, "body": {**default, "max_tokens": 4, **body}}


class Client:
    """A client of files and batches, in plain JSON."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self.http = httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"} if key else {})

    async def send(self, lines: Sequence[Json], url: str = COMPLETION, window: str = "24h", **more: Any) -> Json:
        text = "\n".join(map(json.dumps, lines))
        files = {"file": ("in.jsonl", text.encode())}
        file = await self.http.post("/v1/files", data={"purpose": "batch"}, files=files)
        batch = {"input_file_id": file.json()["id"], "endpoint": url, "completion_window": window, **more}
        response = await self.http.post("/v1/batches", json=batch)
        assert response.status_code == 200, response.text
        return dict(response.json())

    async def get(self, batch: Json) -> Json:
        return dict((await self.http.get(f"/v1/batches/{batch['id']}")).json())

    async def until(self, batch: Json, is_so: Callable[[Json], bool]) -> Json:
        async with asyncio.timeout(30):
            while not is_so(batch := await self.get(batch)):
                await asyncio.sleep(0.01)
        return batch

    async def ended(self, batch: Json) -> Json:
        return await self.until(batch, lambda b: b["status"] in ("completed", "failed", "expired", "cancelled"))

    async def lines(self, batch: Json, name: str) -> list[Json]:
        id = batch[f"{name}_file_id"]
        if id is None:
            return []
        file = (await self.http.get(f"/v1/files/{id}")).json()
        content = (await self.http.get(f"/v1/files/{id}/content")).content
        assert file["bytes"] == len(content) and file["purpose"] == "batch_output"
        return [json.loads(text) for text in content.splitlines()]


@asynccontextmanager
async def serving(checkpoint: Path, folder: Path, **config: Any) -> AsyncIterator[tuple[LightServer, Client]]:
    async with light_server(checkpoint, folder, **config) as server:
        client = Client(server.url)
        async with client.http:
            yield server, client


def usage_of(results: list[Json]) -> Json:
    found = [result["response"]["body"]["usage"] for result in results]
    num_in = sum(usage.get("prompt_tokens", usage.get("input_tokens")) for usage in found)
    num_out = sum(usage.get("completion_tokens", usage.get("output_tokens")) for usage in found)
    details = [usage.get("prompt_tokens_details", usage.get("input_tokens_details")) for usage in found]
    return {
        "input_tokens": num_in,
        "input_tokens_details": {"cached_tokens": sum(detail["cached_tokens"] for detail in details)},
        "output_tokens": num_out,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": num_in + num_out,
    }


async def test_each_line_has_one_result(demo_checkpoint: Path, tmp_path: Path) -> None:
    async with serving(demo_checkpoint, tmp_path) as (server, client):
        lines = [line(n) for n in range(40)] + [line(98, n=0), line(99, model="none")]
        sent = await client.send(lines, metadata={"a": "b"})
        assert sent["status"] == "validating" and sent["expires_at"] == sent["created_at"] + 86400
        batch = await client.ended(sent)
        assert batch["status"] == "completed" and batch["metadata"] == {"a": "b"}
        assert batch["request_counts"] == {"total": 42, "completed": 40, "failed": 2}
        output = await client.lines(batch, "output")
        assert sorted(result["custom_id"] for result in output) == sorted(f"id {n}" for n in range(40))
        for result in output:
            assert result["response"]["status_code"] == 200 and result["error"] is None
            assert result["response"]["body"]["choices"][0]["text"] == result["custom_id"].removeprefix("id ")
        assert batch["model"] == "Qwen" and batch["usage"] == usage_of(output)
        errors = {result["custom_id"]: result["response"] for result in await client.lines(batch, "error")}
        assert errors["id 98"]["status_code"] == 400 and errors["id 98"]["body"]["error"]["param"] == "n"
        assert errors["id 99"]["status_code"] == 404
        assert server.metric("vllm:time_to_first_token_seconds_count", model_name="Qwen") == 0, "nobody waited"


async def test_chats_and_lists(server: ServerProcess) -> None:
    client = Client(server.url)
    async with client.http:
        ids = []
        response = {**line(1, "/v1/responses"), "body": {"input": "hi", "max_output_tokens": 16}}
        for one, kind in ((line(1, CHAT), "chat.completion"), (response, "response"), (line(1), "text_completion")):
            batch = await client.ended(await client.send([one], one["url"]))
            ids.append(batch["id"])
            (result,) = await client.lines(batch, "output")
            assert batch["usage"] == usage_of([result]) and batch["usage"]["output_tokens"] > 0
            assert result["response"]["body"]["object"] == kind and batch["error_file_id"] is None
        first = (await client.http.get("/v1/batches?limit=2")).json()
        assert [b["id"] for b in first["data"]] == [ids[2], ids[1]] and first["has_more"]
        assert list(first) == ["object", "data", "first_id", "last_id", "has_more"]
        rest = (await client.http.get(f"/v1/batches?after={first['last_id']}")).json()
        assert rest["data"][0]["id"] == ids[0] and not rest["has_more"]
        assert (await client.http.get("/v1/batches?after=none")).status_code == 400
        cancelled = await client.http.post(f"/v1/batches/{ids[0]}/cancel")
        assert cancelled.status_code == 409 and "completed cannot be cancelled" in cancelled.text


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"completion_window": "31d"}, "completion_window"),
        ({"input_file_id": "file-\ud800"}, "input_file_id"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_cannot_be_a_batch_is_refused(server: ServerProcess, change: Json, param: str) -> None:
    body = {"input_file_id": "file-none", "endpoint": COMPLETION, "completion_window": "24h", **change}
    async with httpx.AsyncClient(base_url=server.url) as http:
        response = await http.post(
            "/v1/batches", content=json.dumps(body), headers={"content-type": "application/json"}
        )
    assert response.status_code == 400 and response.json()["error"]["param"] == param


async def test_a_file_with_bad_lines_fails_and_says_where(server: ServerProcess) -> None:
    client = Client(server.url)
    async with client.http:
        batch = await client.ended(await client.send([line(1), line(1), {"custom_id": "x"}]))
        assert batch["status"] == "failed" and batch["output_file_id"] is None
        errors = [(error["line"], error["code"]) for error in batch["errors"]["data"]]
        assert errors == [(2, "duplicate_custom_id"), (3, "invalid_method")]
        assert batch["request_counts"]["total"] == 0


async def test_a_cancelled_batch_ends_and_gives_way(demo_checkpoint: Path, tmp_path: Path) -> None:
    async with serving(demo_checkpoint, tmp_path, engine="mute") as (server, client):
        batch = await client.send([line(n) for n in range(5)])
        behind = await client.send([line(1)])
        await client.until(batch, lambda b: b["status"] == "in_progress")
        assert server.services.engine.waiting.total.num_requests == 0, "it stands in nobody's way"
        for _ in range(2):
            answer = (await client.http.post(f"/v1/batches/{batch['id']}/cancel")).json()
            assert answer["status"] in ("cancelling", "cancelled")
            if answer["status"] == "cancelled":
                break
            batch = await client.ended(batch)
            if batch["status"] == "cancelled":
                break
        assert batch["status"] == "cancelled" and batch["cancelled_at"] and batch["output_file_id"] is None
        assert batch["request_counts"] == {"total": 5, "completed": 0, "failed": 0}
        await client.until(behind, lambda b: b["status"] == "in_progress")
        async with asyncio.timeout(10):
            while server.services.engine.num_open_requests != 1:
                await asyncio.sleep(0.01)


async def test_what_is_not_done_in_time_is_written_down(demo_checkpoint: Path, tmp_path: Path) -> None:
    async with serving(demo_checkpoint, tmp_path, engine="mute") as (_, client):
        batch = await client.ended(await client.send([line(n) for n in range(5)], window="1s"))
        assert batch["status"] == "expired" and batch["expired_at"]
        assert batch["request_counts"] == {"total": 5, "completed": 0, "failed": 5}
        errors = await client.lines(batch, "error")
        assert [e["error"]["code"] for e in errors] == ["batch_expired"] * 5
        assert {e["custom_id"] for e in errors} == {f"id {n}" for n in range(5)} and errors[0]["response"] is None


async def test_an_input_that_is_deleted_ends_the_batch(demo_checkpoint: Path, tmp_path: Path) -> None:
    async with serving(demo_checkpoint, tmp_path, engine="mute") as (_, client):
        first = await client.send([line(1)])
        second = await client.send([line(1)])
        await client.until(second, lambda b: b["status"] == "in_progress")
        await client.http.delete(f"/v1/files/{second['input_file_id']}")
        await client.http.post(f"/v1/batches/{first['id']}/cancel")
        batch = await client.ended(second)
        assert batch["status"] == "failed" and batch["errors"]["data"][0]["code"] == "input_file_deleted"


async def test_results_wait_for_room(demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.batches.job._RETRY_STORE_S", 0.0)
    async with serving(demo_checkpoint, tmp_path) as (server, client):
        store = server.services.store
        write, num_refused = store.write, 0

        async def often_full(*changes: Any) -> None:
            nonlocal num_refused
            if isinstance(changes[0], Append) and changes[0].names and num_refused < 5:
                num_refused += 1
                raise StoreFullError("no room")
            await write(*changes)

        monkeypatch.setattr(store, "write", often_full)
        batch = await client.ended(await client.send([line(n) for n in range(3)]))
        assert batch["request_counts"] == {"total": 3, "completed": 3, "failed": 0} and num_refused == 5


async def test_an_engine_that_dies_of_a_line_does_not_stop_the_batch(demo_checkpoint: Path, tmp_path: Path) -> None:
    async with serving(demo_checkpoint, tmp_path, engine="mortal:1") as (server, client):
        batch = await client.ended(await client.send([line(n) for n in range(3)]))
        assert batch["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
        assert server.services.engine.num_restarts == 1


SERVE = """
import asyncio, sys
from pathlib import Path
from tests.support.light_server import LightServer

async def main():
    checkpoint, folder = map(Path, sys.argv[1:3])
    server = LightServer(checkpoint, folder, store=folder / "store.db")
    await server.ready()
    print(server.url, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def has_completed(number: int, batch: Json) -> bool:
    return bool(batch["request_counts"]["completed"] >= number)


async def test_kills_lose_and_repeat_nothing(demo_checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", SERVE, str(demo_checkpoint), str(tmp_path)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    num_lines, acknowledged, batch = 300, 0, {}
    for attempt in range(2):
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environ
        ) as process:
            try:
                assert process.stdout is not None
                client = Client(process.stdout.readline().strip())
                async with client.http:
                    if attempt == 0:
                        batch = await client.send([line(n) for n in range(num_lines)])
                    assert (await client.get(batch))["request_counts"]["completed"] >= acknowledged
                    if attempt == 1:
                        batch = await client.ended(batch)
                        output = await client.lines(batch, "output")
                    else:
                        batch = await client.until(batch, partial(has_completed, 50))
                        acknowledged = batch["request_counts"]["completed"]
            finally:
                process.send_signal(signal.SIGKILL)
    assert batch["status"] == "completed" and batch["request_counts"]["completed"] == num_lines
    assert Counter(result["custom_id"] for result in output) == Counter(f"id {n}" for n in range(num_lines))
    assert batch["usage"] == usage_of(output)
