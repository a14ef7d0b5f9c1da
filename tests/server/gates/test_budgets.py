"""Whatever a request can make large is bounded, and large work is done off the event loop."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import APIRouter

from model.contract.engine_config import EngineConfig
from model.contract.errors import InvalidRequestError
from model.contract.messages import EngineReady
from model.contract.tokenizer import Tokenizer
from prompts.messages import FunctionCall, Message
from prompts.react.tool_format import ReActFormat
from server.app import create_app
from server.conversion import converter as conversion
from server.conversion.budget import MAX_REPLY_LOGPROBS
from server.conversion.converter import Converter
from server.conversion.defaults import GenerationDefaults
from server.conversion.generation_request import GenerationRequest
from server.conversion.prompt_encoding import MAX_CALLS, PromptEncoder
from server.conversion.readers.chat import read_chat
from server.conversion.readers.completions import read_completion
from server.conversion.readers.unsupported import UnknownFields
from server.engine.client import EngineClient
from server.gates.gate import GateMiddleware, WorkRoutes
from server.gates.request_context import body_bytes_var
from server.off_loop import HUGE_BYTES, SMALL_BYTES, OffLoop
from server.services import Services
from server.settings import Settings
from server.wire.json_body import MAX_CONTAINERS, JsonBodyRoute, _count_containers
from server.wire.shapes.chat import ChatCompletionRequest
from server.wire.shapes.completions import CompletionRequest
from tests.support.grammars import GRAMMARS
from tests.support.vocabulary import byte_tokenizer
from tests.support.wire import Wire

JsonDict = dict[str, Any]
HI = [{"role": "user", "content": "hi"}]
READY = EngineReady(
    max_model_len=4000, vocab_size=512, num_blocks=9, block_size=16, kv_cache_bytes=1, weights_bytes=1,
    dtype="float32", device="cpu",
)  # fmt: skip


def converter(**limits: Any) -> Converter:
    return Converter(PromptEncoder(byte_tokenizer(), GenerationDefaults()), GRAMMARS, **limits)


async def chat(ours: Converter | None = None, **body: Any) -> GenerationRequest:
    request = ChatCompletionRequest.model_validate({"messages": HI, **body})
    return await (ours or converter()).chat(read_chat(request), READY)


async def completion(ours: Converter | None = None, **body: Any) -> GenerationRequest:
    request = CompletionRequest.model_validate({"prompt": "hi", **body})
    return await (ours or converter()).completion(read_completion(request), READY)


# --- bodies


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ([[]] * 10, 11),
        ({"a": {"b": [1, {}]}}, 4),
        ([[], "[{" * (MAX_CONTAINERS + 1), '"\\[', "\\", {}], 3),
        (["[" * 5], 6),  # few enough not to be looked at closely
        ([[]] * (MAX_CONTAINERS * 2), MAX_CONTAINERS + 1),
    ],
)
def test_objects_and_lists_are_counted_outside_of_texts(body: Any, count: int) -> None:
    assert _count_containers(json.dumps(body).encode()) == count


def test_a_body_of_too_many_objects_is_refused_and_one_of_many_brackets_is_not(wire: Wire) -> None:
    calls = [{"id": "a", "function": {"name": "f"}}] * 500
    messages = [{"role": "assistant", "tool_calls": calls}] * 40
    error = wire.refused(messages=[*messages, *HI])
    assert f"more than {MAX_CONTAINERS} JSON objects" in error["message"]
    text = "[{" * MAX_CONTAINERS
    assert wire.ok("/tokenize", {"prompt": text})["count"] == len(text)


def test_large_bodies_are_judged_like_small_ones(wire: Wire) -> None:
    """They are parsed and checked on a thread, with the same result."""
    for padding in ("", "x" * SMALL_BYTES, "x" * HUGE_BYTES):
        assert wire.choice(user=padding, max_tokens=1)["finish_reason"] == "length"
        error = wire.refused(user=padding, messages=[*HI, {"role": "user", "content": [{"type": 5}]}])
        assert error["param"] == "messages[1].content[0].type"
        response = wire.http.post("/v1/chat/completions", content=b'{"user": "' + padding.encode() + b'" "}')
        assert response.status_code == 400
        assert "not valid JSON" in response.json()["error"]["message"]


async def test_all_that_is_made_of_a_large_body_is_made_on_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading, rendering, encoding, decoding and writing grammars: whatever the size is due to."""
    ours = converter()
    here = threading.get_ident()
    elsewhere: dict[str, bool] = {}

    def note(name: str, function: Any) -> Any:
        def noting(*args: Any, **named: Any) -> Any:
            elsewhere[name] = threading.get_ident() != here
            return function(*args, **named)

        return noting

    monkeypatch.setattr(conversion, "check_ids", note("check_ids", conversion.check_ids))  # type: ignore[attr-defined]
    monkeypatch.setattr(ReActFormat, "grammar", note("grammar", ReActFormat.grammar))
    monkeypatch.setattr(ReActFormat, "render", staticmethod(note("render", ReActFormat.render)))
    for name in ("encode", "decode"):
        monkeypatch.setattr(ours.encoder.tokenizer, name, note(name, getattr(ours.encoder.tokenizer, name)))
    token = body_bytes_var.set(SMALL_BYTES + 1)
    services: Any = SimpleNamespace(off_loop=OffLoop(), unknown_fields=UnknownFields())
    body = ChatCompletionRequest.model_validate({"messages": HI})
    assert (await Services.read(services, body, note("reading", read_chat))).messages
    await chat(ours, tools=[{"type": "function", "function": {"name": "f"}}])
    await completion(ours, prompt=[[1, 2], [3]], echo=True)
    body_bytes_var.reset(token)
    del elsewhere["check_ids"]  # of the stop ids comes last
    assert set(elsewhere.values()) == {True}, elsewhere
    assert len(elsewhere) == 5


# --- prompts


def test_rendering_is_linear_in_calls() -> None:
    """16 MB of calls in one turn: joined one by one they would be copied two thousand times."""
    call = FunctionCall("f", "x" * 4000)
    started = time.process_time()
    prompt = ReActFormat().render([Message("user", "hi"), Message("assistant", "", calls=(call,) * 4096)])
    assert time.process_time() - started < 2
    assert sum(len(segment.text) for segment in prompt.segments if hasattr(segment, "text")) > 4096 * 4000


LONG = "x" * 300_000
CALL = {"id": "a", "function": {"name": "f"}}


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": LONG}]},
        {"messages": [{"role": "user", "content": LONG[:200_000]}] * 2},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": LONG[:200_000]}] * 2}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": LONG}}]}, *HI]},
        {
            "messages": [
                {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": LONG}}]},
                *HI,
            ]
        },
        {"tools": [{"type": "function", "function": {"name": "f", "description": LONG}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"description": LONG}}}]},
    ],
)
async def test_what_cannot_fit_is_refused_before_it_is_encoded(body: JsonDict, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = converter()
    monkeypatch.setattr(ours.encoder.tokenizer, "encode", lambda text: pytest.fail("encoded"))
    monkeypatch.setattr(ours.encoder.tokenizer, "longest_token_bytes", 64)
    with pytest.raises(InvalidRequestError, match="cannot fit") as caught:
        await chat(ours, **body)
    assert caught.value.code == "context_length_exceeded"


async def test_calls_are_bounded_in_all() -> None:
    messages = [{"role": "assistant", "tool_calls": [CALL] * (MAX_CALLS // 16)}] * 16
    with pytest.raises(InvalidRequestError, match="at most 4096 tool calls, not 4097"):
        await chat(messages=[*messages, {"role": "assistant", "tool_calls": [CALL]}, *HI])


async def test_what_all_prompts_share_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = conversion._logit_bias
    monkeypatch.setattr(conversion, "_logit_bias", lambda *args: calls.append(1) or original(*args))  # type: ignore[func-returns-value]
    request = await completion(prompt=[[1]] * 100 + [[1, 2]] * 100, logit_bias={"1": 1}, max_tokens=None)
    assert len(calls) == 1
    assert len({id(prompt.sampling) for prompt in request.prompts}) == 1


async def test_a_large_grammar_for_many_prompts_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "MAX_GRAMMAR_CHARS_IN_ALL", 1000)
    wishes = {"structured_outputs": {"choice": ["x" * 400]}}
    await completion(prompt=["a"] * 2, **wishes)
    with pytest.raises(InvalidRequestError, match="So large a grammar for 3 prompts"):
        await completion(prompt=["a"] * 3, **wishes)


# --- sizes


async def test_prompts_count_towards_what_a_request_may_ask_for() -> None:
    ours = converter(max_request_tokens=1000)
    await completion(ours, prompt=[[1] * 90] * 10, max_tokens=10)
    with pytest.raises(InvalidRequestError, match="asks for 1100 tokens: 1000 of prompts") as caught:
        await completion(ours, prompt=[[1] * 100] * 10, max_tokens=10)
    assert caught.value.param == "prompt"
    await completion(ours, prompt=[[1] * 90], n=20, max_tokens=1)
    for shown in ({"echo": True}, {"return_token_ids": True}):
        with pytest.raises(InvalidRequestError, match="1800 of prompts"):
            await completion(ours, prompt=[[1] * 90], n=20, max_tokens=1, **shown)


async def test_replies_of_too_many_logprobs_are_refused_unless_they_are_streamed() -> None:
    """One choice may report all that fits the context; what it is streamed never lies in one piece."""
    many = {"n": 128, "max_tokens": MAX_REPLY_LOGPROBS // (128 * 21) + 1}
    scores = {"logprobs": True, "top_logprobs": 20}
    with pytest.raises(InvalidRequestError, match="log-probabilities in one reply") as caught:
        await chat(**many, **scores)
    assert caught.value.param == "logprobs"
    await chat(**many, **scores, stream=True)
    await chat(**many, logprobs=True)
    await chat(**scores)
    prompts = [[1] * 2000] * 50
    await completion(prompt=prompts, max_tokens=0, echo=True, logprobs=1)
    for wishes in ({"echo": True, "logprobs": 5}, {"prompt_logprobs": 5}):
        with pytest.raises(InvalidRequestError, match="600000 log-probabilities"):
            await completion(prompt=prompts, max_tokens=0, **wishes)


# --- gates


def test_every_route_that_takes_work_passes_the_gates(demo_checkpoint: Path) -> None:
    engine = EngineClient(EngineConfig(checkpoint_path="none"))  # not started
    tokenizer = Tokenizer.from_folder(demo_checkpoint)
    app = create_app(Settings(model="m"), tokenizer, GenerationDefaults(), engine)
    bodies = {path: methods.get("post", {}).get("requestBody", {}) for path, methods in app.openapi()["paths"].items()}
    paths = [path for path, body in bodies.items() if "application/json" in body.get("content", {})]
    assert {"/tokenize", "/detokenize", "/v1/completions"} < set(paths)
    (gate,) = (entry for entry in app.user_middleware if entry.cls is GateMiddleware)
    work = gate.kwargs["work"]
    paths.remove("/v1/batches")  # which waits behind the live requests anyhow
    assert [path for path in paths if {"type": "http", "method": "POST", "path": path} not in work] == []
    assert {"type": "http", "method": "GET", "path": "/v1/completions"} not in work
    assert {"type": "http", "method": "POST", "path": "/v1/embeddings"} not in work


def test_work_at_paths_with_parameters_is_known() -> None:
    router = APIRouter(route_class=JsonBodyRoute)
    router.add_api_route("/v1/threads/{name}/runs", lambda name: None, methods=["POST"])
    work = WorkRoutes(router.routes)
    assert {"type": "http", "method": "POST", "path": "/v1/threads/a/runs"} in work
    assert {"type": "http", "method": "POST", "path": "/v1/threads/a"} not in work


async def test_tokenizing_has_a_queue_and_a_rate(demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = EngineClient(EngineConfig(checkpoint_path="none"))
    monkeypatch.setattr(engine, "require_ready", lambda: READY)
    monkeypatch.setattr(engine, "require_open", lambda: None)
    config = Settings(model="m", max_queue_requests=1, max_requests_per_minute=4)
    app = create_app(config, Tokenizer.from_folder(demo_checkpoint), GenerationDefaults(), engine)
    begun, finished = asyncio.Event(), asyncio.Event()

    async def slowly(work: Any) -> Any:
        begun.set()
        await finished.wait()
        return work()

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        monkeypatch.setattr(app.state.services.off_loop.__class__, "run", lambda _, work: slowly(work))
        first = asyncio.create_task(http.post("/tokenize", json={"prompt": "hi"}))
        await begun.wait()
        second = await http.post("/detokenize", json={"tokens": [65]})
        assert (second.status_code, second.json()["error"]["code"]) == (429, "server_overloaded")
        finished.set()
        assert (await first).json()["tokens"] == [104, 105]
        assert (await http.post("/detokenize", json={"tokens": [65]})).json() == {"prompt": "A"}
        statuses = [(await http.post("/tokenize", json={"prompt": "hi"})) for _ in range(2)]
    assert [reply.status_code for reply in statuses] == [200, 429]
    assert statuses[1].json()["error"]["code"] == "rate_limit_exceeded"
