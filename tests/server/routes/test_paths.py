"""What is answered at which path: names, prefixes, paths that are no routes; on an app whose engine is not started."""

from __future__ import annotations

import inspect
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from model.contract.engine_config import EngineConfig
from server.app import ROUTERS, create_app
from server.batches.batch import Batch
from server.config.sources import load_settings
from server.conversion.defaults import GenerationDefaults
from server.engine.client import EngineClient
from server.settings import Settings
from server.store.records import Put
from server.wire.missing_routes import missing_route
from server.wire.shapes.files import BatchRequest
from tests.support.vocabulary import byte_tokenizer


def app_of(**config: Any) -> FastAPI:
    engine = EngineClient(EngineConfig(checkpoint_path="x"), start_timeout_s=1, timeout_s=1, on_fatal=print)
    settings = Settings(**{"model": "m", **config})
    return create_app(settings, byte_tokenizer(), GenerationDefaults(), engine)


def client_of(**config: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app_of(**config)), base_url="http://127.0.0.1")


async def error_of(http: httpx.AsyncClient, method: str, path: str) -> tuple[int, str]:
    response = await http.request(method, path)
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return response.status_code, error["message"]


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/completions", "/v1/completions"),
        ("/models", "/v1/models"),
        ("/embeddings", "/v1/embeddings"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/api/v1/models", "/v1/models"),
        ("/v1/tokenize", "/tokenize"),
        ("/v1/health", "/health"),
    ],
)
async def test_a_path_with_another_prefix_is_told_where_it_is(path: str, meant: str) -> None:
    async with client_of() as http:
        for method in ("GET", "POST"):
            status, message = await error_of(http, method, path)
            assert status == 404
            assert f"did you mean {meant}?" in message


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/v1/embeddings", "embeddings"),
        ("/v1/audio/speech", "speak"),
        ("/v1/audio/transcriptions", "hear"),
        ("/v1/images/generations", "draw"),
        ("/v1/images/edits", "draw"),
        ("/v1/moderations", "moderate"),
        ("/v1/rerank", "rank"),
        ("/v1/threads/t1/runs", "Assistants"),
    ],
)
async def test_what_is_not_served_says_what_is(path: str, word: str) -> None:
    async with client_of() as http:
        status, message = await error_of(http, "POST", path)
        assert status == 404
        assert word in message
        assert "/v1/chat/completions" in message


def test_nothing_is_guessed_where_nothing_is_near() -> None:
    routes = ["/", "/v1/models", "/v1/models/{model_id:path}", "/web/{name}"]
    for path in ("", "/", "/x", "/web/none.js", "/v2", "/s"):
        assert "did you mean" not in missing_route(path, routes)


async def test_behind_a_prefix_paths_work_with_and_without_it() -> None:
    async with client_of(root_path="/a/qwen", api_key=("k",), max_queue_requests=1) as http:
        for prefix in ("", "/a/qwen"):
            assert (await http.get(prefix + "/version")).status_code == 200
            assert (await http.get(prefix + "/")).status_code == 200
            assert (await http.get(prefix + "/v1/models")).status_code == 401
            models = await http.get(prefix + "/v1/models", headers={"Authorization": "Bearer k"})
            assert [model["id"] for model in models.json()["data"]] == ["m", "Qwen"]
            # Refused at the door, which knows the path: the engine is not there.
            chat = await http.post(prefix + "/v1/chat/completions", headers={"Authorization": "Bearer k"})
            assert chat.status_code == 503
        assert (await http.get("/a/qwen")).status_code == 200
        document = (await http.get("/a/qwen/openapi.json")).json()
        assert document["servers"] == [{"url": "/a/qwen"}]
        assert "/v1/models" in document["paths"]
        assert (await http.get("/a/qwenx/version")).status_code == 401


@pytest.mark.parametrize("text", ["qwen", "/qwen/", "/", "//x", "/a b", "/?"])
def test_a_prefix_is_a_path(text: str) -> None:
    with pytest.raises(Exception, match="--root-path"):
        load_settings({"model": "m", "root_path": text}, {})


async def test_a_star_accepts_every_name() -> None:
    config = load_settings({"model": "Qwen/Qwen-7B-Chat", "served_model_name": ["*"]}, {})
    assert config.served_names == ("Qwen/Qwen-7B-Chat", "Qwen-7B-Chat", "Qwen")
    named = load_settings({"model": "x/y", "served_model_name": ["*", "mine"]}, {})
    assert (named.served_names, named.accepts_any_name) == (("mine",), True)
    services = app_of(served_model_name=("mine", "*")).state.services
    assert services.resolve_model("gpt-3.5-turbo") == "gpt-3.5-turbo"
    assert services.resolve_model(None) == "mine"
    async with client_of(served_model_name=("mine", "*")) as http:
        assert [model["id"] for model in (await http.get("/v1/models")).json()["data"]] == ["mine"]
        assert (await http.get("/v1/models/any/name")).json()["id"] == "any/name"
    async with client_of(served_model_name=("mine",)) as http:
        assert (await error_of(http, "GET", "/v1/models/any"))[0] == 404


async def test_a_name_may_hold_slashes() -> None:
    async with client_of(served_model_name=("Qwen/Qwen-7B-Chat",)) as http:
        assert (await http.get("/v1/models/Qwen/Qwen-7B-Chat")).json()["id"] == "Qwen/Qwen-7B-Chat"
        assert (await http.get("/v1/models/Qwen%2FQwen-7B-Chat")).json()["id"] == "Qwen/Qwen-7B-Chat"


def test_no_route_goes_through_threads_for_what_it_depends_on() -> None:
    routes = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    needed = [needed.call for route in routes for needed in route.dependant.dependencies]
    assert needed and all(map(inspect.iscoroutinefunction, [*needed, *(route.endpoint for route in routes)]))


async def test_batches_of_older_versions_are_shown_whole() -> None:
    app = app_of()
    services = app.state.services
    request = BatchRequest(input_file_id="file-1", endpoint="/v1/responses", completion_window="1h")
    stored = Batch.from_request(request, "").put().object
    services.store.start()
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http:
            whole = stored.body["wire"]
            stored.body["wire"] = {key: value for key, value in whole.items() if key not in ("model", "usage")}
            await services.store.write(Put(stored))
            shown = (await http.get(f"/v1/batches/{stored.id}")).json()
            listed = (await http.get("/v1/batches")).json()["data"]
            assert shown == whole and listed == [whole]
            assert shown["model"] is None and shown["usage"]["total_tokens"] == 0
    finally:
        services.store.close()
