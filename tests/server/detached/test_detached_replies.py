"""Replies that go on without their clients: chats that are resumed, responses that outlive engine and server."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from model.contract.messages import SequenceOutput
from server.detached import event_log, runs
from server.detached.event_log import EventLog, RepeatedOtherwiseError
from server.detached.runs import MAX_RUNS_PER_CALLER, Run, Runs
from server.gates.callers import NOBODY, Caller
from server.off_loop import OffLoop
from server.replies.chunk_reply import failure_event
from server.replies.generation import _by_token
from server.replies.output_processor import ChoiceDelta
from server.replies.responses import ResponsesReply, new_response
from server.responses.background import Background
from server.responses.maker import NewResponse
from server.store.errors import StoreError, StoreFullError
from server.store.records import Change, Delete, Put
from server.wire.errors import ApiError
from server.wire.shapes.responses import ResponsesRequest
from tests.conftest import SMALL
from tests.support.light_server import LightServer, light_server
from tests.support.responses_api import events
from tests.support.server_process import running_server
from tests.support.vocabulary import score
from tests.support.wire import Wire

JsonDict = dict[str, Any]
CHAT = "/v1/chat/completions"
URL = "/v1/responses"


def log_of(max_bytes: int = 1000, **options: bool) -> EventLog:
    return EventLog(lambda log, num_bytes: log.num_bytes + num_bytes <= max_bytes, **options)


async def read(log: EventLog, start: int = 0) -> bytes:
    return b"".join([piece async for piece in log.follow(start, failure_event)])


def begin(every: Runs, id: str, work: Callable[[Run], Coroutine[Any, Any, None]], **options: float) -> Run:
    inside = ExitStack()
    inside.enter_context(every.room(NOBODY))
    return every.start(id, NOBODY, work, inside=inside, **options)  # type: ignore[arg-type]


async def test_a_log_is_followed_from_any_event() -> None:
    log = log_of(shows_numbers=True)
    reading = asyncio.create_task(read(log, 1))
    log.write(b"data: a\n\n")
    await asyncio.sleep(0)
    log.write(b"data: b\n\ndata: c\n\n")
    log.end()
    assert await reading == b"id: 1\ndata: b\n\nid: 2\ndata: c\n\n"
    assert await read(log, 3) == b""


async def test_what_is_written_again_must_be_the_same() -> None:
    log = log_of()
    log.write(b"data: a\n\ndata: b\n\n")
    log.rewind()
    log.write(b"data: a\n\n")
    with pytest.raises(RepeatedOtherwiseError):
        log.write(b"data: x\n\n")
    log.forward()
    log.write(b"data: c\n\n")
    log.end()
    assert await read(log) == b"data: a\n\ndata: b\n\ndata: c\n\n"


async def test_of_what_is_too_long_nothing_is_kept() -> None:
    log = log_of(20)
    log.write(b"data: a\n\n")
    reading = asyncio.create_task(read(log, 1))
    await asyncio.sleep(0)
    log.write(b"data: " + b"b" * 20 + b"\n\n")
    assert b"not kept any more" in await reading, "a stream that is cut says why"
    with pytest.raises(ApiError, match="not kept any more"):
        log.require_kept()
    assert log.num_bytes == 0
    log.write(b"data: c\n\n")
    log.end()


async def test_events_of_all_replies_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "MAX_EVENT_BYTES_IN_ALL", 30)
    every = Runs()

    async def work(run: Run) -> None:
        run.log.write(b"data: 12345\n\n")

    for id in "abc":
        run = begin(every, id, work, keep_s=60)
        assert run.task is not None
        await run.task
    assert [every.get(NOBODY, id) is not None for id in "abc"] == [False, True, True]
    assert every.get(Caller("ann", has_key=True), "c") is None
    await every.stop()
    assert every.get(NOBODY, "c") is None


async def test_one_caller_may_have_so_many() -> None:
    every = Runs()

    async def wait(run: Run) -> None:
        await asyncio.get_running_loop().create_future()

    for number in range(MAX_RUNS_PER_CALLER):
        begin(every, str(number), wait)
    with pytest.raises(ApiError) as caught, every.room(NOBODY):
        pass
    assert caught.value.status_code == 429
    with every.room(Caller("else")):
        pass
    run = every.get(NOBODY, "3")
    assert run is not None
    await every.end(run)
    assert every.get(NOBODY, "3") is None
    with every.room(NOBODY), pytest.raises(ApiError), every.room(NOBODY):
        pass  # counted from before it begins
    await every.stop()


async def test_what_is_about_to_end_is_not_interrupted() -> None:
    every, may_end = Runs(), asyncio.Event()

    async def keep(run: Run) -> None:
        run.is_ending = True
        await may_end.wait()
        run.state["is_kept"] = True

    run = begin(every, "a", keep)
    ending = asyncio.create_task(run.cancel())
    for _ in range(5):
        await asyncio.sleep(0)
    may_end.set()
    await ending
    assert run.state == {"is_kept": True}


def in_the_background(
    write: Callable[..., Coroutine[Any, Any, None]],
) -> tuple[Background, NewResponse, ResponsesReply]:
    """A response that has been made, and may now be kept by `write`."""
    body = ResponsesRequest(input="hi", background=True)
    new = NewResponse(body, new_response("resp_1", body, "m", truncation="disabled"), NOBODY)
    tokenizer: Any = None
    reply = ResponsesReply(None, new.response, 1, tokenizer)
    reply.add([ChoiceDelta(0, "Hello")])
    services = cast(Any, SimpleNamespace(off_loop=OffLoop()))
    return Background(services, cast(Any, SimpleNamespace(stored=SimpleNamespace(write=write)))), new, reply


async def test_a_response_ends_also_where_it_has_no_room() -> None:
    kept: list[Change] = []

    async def write(*changes: Change) -> None:
        if any(isinstance(change, Put) and change.object.body["output"] for change in changes):
            raise StoreFullError("no room")
        kept.extend(changes)

    background, new, reply = in_the_background(write)
    run = Run("resp_1", NOBODY, log_of(10_000))
    await background._give_up(run, new, reply, None)
    assert run.is_ending and run.state["status"] == "cancelled" and run.state["output"] == []
    assert [type(change) for change in kept] == [Delete, Put]
    assert b"event: response.incomplete" in run.log.events[-1]


@pytest.mark.parametrize("num_failures", [3, 1000])
async def test_a_disk_that_fails_for_a_while(num_failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a response is stored as soon as that works; where it never does, its polling ends too."""
    monkeypatch.setattr("server.responses.background._TRY_AGAIN_S", 0.0)
    kept: list[Change] = []
    failures = iter(range(num_failures))

    async def write(*changes: Change) -> None:
        if next(failures, None) is not None:
            raise StoreError("the disk fails")
        kept.extend(changes)

    background, new, reply = in_the_background(write)
    run = Run("resp_1", NOBODY, log_of(10_000))
    queued = {**new.response, "status": "queued"}
    with contextlib.nullcontext() if num_failures < 10 else pytest.raises(StoreError):
        await background._give_up(run, new, reply, None)
    assert bool(kept) == (num_failures < 10)
    assert background.as_known(queued)["status"] == ("queued" if kept else "failed")


def test_an_output_is_cut_into_tokens() -> None:
    whole = SequenceOutput(1, [5, 6, 7], "stop", 7, logprobs=[score(i) for i in (5, 6, 7)], num_cached_tokens=2)
    first, second, third = _by_token(whole)
    assert first == SequenceOutput(1, [5], logprobs=[score(5)], num_cached_tokens=2)
    assert second == SequenceOutput(1, [6], logprobs=[score(6)])
    assert third == SequenceOutput(1, [7], "stop", 7, logprobs=[score(7)])
    assert list(_by_token(SequenceOutput(1, [], "length"))) == [SequenceOutput(1, [], "length")]


# --- chats


def test_a_chat_is_taken_up_from_any_event(wire: Wire) -> None:
    body = {
        "messages": [{"role": "user", "content": "hi"}], "max_tokens": 40, "ignore_eos": True, "stream": True,
        "stream_options": {"resumable": True, "include_usage": True},
    }  # fmt: skip
    with wire.http.stream("POST", CHAT, json=body) as stream:
        lines = stream.iter_lines()
        number = next(lines)
        begun = json.loads(next(lines).removeprefix("data: "))
    assert number == "id: 0"
    path = f"{CHAT}/{begun['id']}"
    rest = wire.http.get(path, headers={"last-event-id": "0"}).text
    assert rest == wire.http.get(path, params={"starting_after": 0}).text
    whole = wire.http.get(path).text
    pieces = whole.split("\n\n")[:-1]
    assert rest == "\n\n".join([*pieces[1:], ""])
    ids, data = zip(*(piece.split("\n") for piece in pieces), strict=True)
    assert ids == tuple(f"id: {n}" for n in range(len(pieces)))
    assert data[-1] == "data: [DONE]" and json.loads(data[-2][6:])["usage"]["completion_tokens"] == 40
    for method, more in (("GET", ""), ("DELETE", ""), ("POST", "/cancel")):
        assert wire.http.request(method, f"{URL}/{begun['id']}{more}").status_code == 404, "it is no response"
    assert wire.http.delete(path).json()["deleted"] is True
    assert wire.http.get(path).status_code == wire.http.delete(path).status_code == 404
    assert wire.http.get(f"{CHAT}/chatcmpl-none").json()["error"]["code"] == "stream_not_found"


def test_a_chat_that_nobody_takes_up_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_of()
    now = 1000.0
    monkeypatch.setattr(event_log.time, "monotonic", lambda: now)  # type: ignore[attr-defined]
    log._left_at = now
    now += 7
    assert log.idle_s == 7
    log._num_readers = 1
    assert log.idle_s == 0


# --- engines and servers that come and go


async def post(server: LightServer, body: JsonDict, **options: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
        return await http.post(URL, json=body, **options)


async def get(server: LightServer, path: str, **options: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
        return await http.get(f"{URL}/{path}", **options)


BACKGROUND = {"input": "hi", "background": True, "max_output_tokens": 8}


async def test_what_had_not_ended_with_the_server_is_made_by_the_next(demo_checkpoint: Path, tmp_path: Path) -> None:
    store = tmp_path / "kept.db"
    async with light_server(demo_checkpoint, tmp_path, store=store) as server:
        # The engine answers only after the server has gone.
        server.engine._supervisor.send = lambda message: None  # type: ignore[method-assign]
        begun = (await post(server, BACKGROUND)).json()
        assert begun["status"] == "queued"
        server.signal()
        server.signal()
        await server.ended()
    async with light_server(demo_checkpoint, tmp_path, store=store) as server:
        stream = await get(server, begun["id"], params={"stream": "true"})
        last = events(stream.text)[-1]["response"]
        assert last["status"] in ("completed", "incomplete") and last["output"][0]["content"][0]["text"]
        assert (await get(server, begun["id"])).json() == last
    async with light_server(demo_checkpoint, tmp_path, store=store) as server:  # and not once more
        assert (await get(server, begun["id"])).json() == last
        again = await get(server, begun["id"], params={"stream": "true"})
        assert again.text == stream.text
        assert server.metric("vllm:generation_tokens_total", model_name="Qwen") == 0


async def test_what_had_not_ended_with_the_engine_is_made_by_the_next(demo_checkpoint: Path, tmp_path: Path) -> None:
    async with light_server(demo_checkpoint, tmp_path) as server:
        send = server.engine._supervisor.send
        server.engine._supervisor.send = lambda message: None  # type: ignore[method-assign]
        begun = (await post(server, BACKGROUND)).json()
        server.engine._supervisor.send = send  # type: ignore[method-assign]
        server.engine._requests.fail_all("The engine stopped while the request ran; please send it again.")
        stream = await get(server, begun["id"], params={"stream": "true"})
        assert events(stream.text)[-1]["response"]["status"] in ("completed", "incomplete")


@pytest.mark.slow
def test_a_killed_server_makes_what_it_had_begun(demo_checkpoint: Path, tmp_path: Path) -> None:
    """With the real engine: what a client read before the kill, and reads after it, is one reply."""
    flags = (*SMALL, "--store", str(tmp_path / "kept.db"))
    body = {**BACKGROUND, "max_output_tokens": 300, "ignore_eos": True, "temperature": 1, "stream": True}
    with running_server(demo_checkpoint, tmp_path / "log", *flags) as server:
        seen: list[JsonDict] = []
        with contextlib.suppress(httpx.TransportError), httpx.stream("POST", server.url + URL, json=body) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    seen.append(json.loads(line[6:]))
                if len(seen) == 40:
                    server.process.kill()
    id = seen[0]["response"]["id"]
    with running_server(demo_checkpoint, tmp_path / "log", *flags) as server:
        asked = {"stream": "true", "starting_after": seen[-1]["sequence_number"]}
        text = httpx.get(f"{server.url}{URL}/{id}", params=asked, timeout=60).text
        rest = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: ")]
    numbers = [event["sequence_number"] for event in [*seen, *rest]]
    assert numbers == list(range(len(numbers)))
    deltas = [event["delta"] for event in [*seen, *rest] if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == rest[-1]["response"]["output"][0]["content"][0]["text"]


async def test_what_is_kept_is_its_key_s(demo_checkpoint: Path, tmp_path: Path) -> None:
    ann, bob = ({"authorization": f"Bearer {key}"} for key in ("ann", "bob"))
    async with light_server(demo_checkpoint, tmp_path, script=["One."], api_key=("ann", "bob")) as server:
        kept = (await post(server, {"input": "hi", "max_output_tokens": 8}, headers=ann)).json()
        running = (await post(server, BACKGROUND, headers=ann)).json()
        for response in (kept, running):
            for path in (response["id"], f"{response['id']}/input_items"):
                assert (await get(server, path, headers=bob)).status_code == 404
                assert (await get(server, path, headers=ann)).status_code == 200
        for body in (
            {"input": "x", "previous_response_id": kept["id"]},
            {"input": [{"type": "item_reference", "id": kept["output"][0]["id"]}, {"role": "user", "content": "x"}]},
        ):
            assert (await post(server, body, headers=bob)).status_code in (400, 404)
            assert (await post(server, body, headers=ann)).status_code == 200
