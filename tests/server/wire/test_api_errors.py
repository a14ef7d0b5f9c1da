"""Every error in the one shape, and as the SDK's exception of its kind."""

from __future__ import annotations

import gzip
import re
import zlib
from typing import Any

import httpx
import openai
import pytest

from tests.support.readable_requests import HI
from tests.support.server_process import ServerProcess

# mypy: disable-error-code="call-overload,arg-type"


def shape(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]
    assert "Traceback" not in response.text
    return dict(body["error"])


def test_sdk_exceptions(client: openai.OpenAI, max_model_len: int) -> None:
    with pytest.raises(openai.NotFoundError, match="Qwen-Demo") as missing:
        client.chat.completions.create(model="gpt-4", messages=HI)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="Qwen", messages=HI, temperature=-1)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match=str(max_model_len)) as long:
        client.chat.completions.create(
            model="Qwen", messages=[{"role": "user", "content": "x" * max_model_len}], stream=True
        )
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="'tool_choice' needs 'tools'") as choice:
        client.chat.completions.create(model="Qwen", messages=HI, tool_choice="required")
    assert choice.value.param == "tool_choice"
    with pytest.raises(openai.BadRequestError, match="suffix"):
        client.completions.create(model="Qwen", prompt="a", suffix="b")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nope", 404, "not_found"),
        ("GET", "/v1", 404, "not_found"),
        ("GET", "/v1/models/nope/no", 404, "model_not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/health", 405, "method_not_allowed"),
    ],
)
def test_routes(server: ServerProcess, method: str, path: str, status: int, code: str) -> None:
    response = httpx.request(method, server.url + path)
    assert response.status_code == status
    assert shape(response)["code"] == code


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b"", "application/json"),
        (b"{", "application/json"),
        (b"[]", "application/json"),
        (b"null", "application/json"),
        (b"\xff\xfe", "application/json"),
        (b'{"messages": ' + b"[" * 20000 + b"]" * 20000 + b"}", "application/json"),
        (b'{"messages": [], "seed": ' + b"9" * 5000 + b"}", "application/json"),
        (b"{}", "text/plain"),
        (b'{"model": "\\ud800", "messages": [{"role": "user", "content": "x"}]}', "application/json"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": 1e400}', "application/json"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
def test_bodies_that_make_no_sense(server: ServerProcess, path: str, content: bytes, content_type: str) -> None:
    response = httpx.post(server.url + path, content=content, headers={"content-type": content_type})
    if response.status_code != 200:  # some of these mean something to /tokenize
        assert response.status_code in (400, 404)
        assert shape(response)["type"] == "invalid_request_error"


def test_request_ids(server: ServerProcess) -> None:
    for offered, kept in (("mine-1", True), ("a" * 200, False), ("bad id", False), ("", False)):
        response = httpx.get(server.url + "/nope", headers={"x-request-id": offered})
        assert (response.headers["x-request-id"] == offered) is kept
    httpx.post(
        server.url + "/v1/completions",
        json={"prompt": "a", "max_tokens": 2},
        headers={"x-request-id": "find-me-in-the-log"},
    )
    assert "[find-me-in-the-log] finished" in server.log()


ASKED = '{"messages": [{"role": "user", "content": "你好"}], "max_tokens": 1}'


@pytest.mark.parametrize(
    ("body", "encoding", "status", "words"),
    [
        (ASKED.encode("gbk"), "", 400, r"not UTF-8 \(byte 0xc4 at position 43\); encode the JSON in UTF-8"),
        (ASKED.encode("latin-1", errors="replace") + b"\xe9", "", 400, "not UTF-8"),
        (gzip.compress(ASKED.encode()), "", 415, r"compressed \(gzip\)"),
        (gzip.compress(ASKED.encode()), "gzip", 415, r"compressed \(gzip\)"),
        (zlib.compress(ASKED.encode()), "deflate", 415, r"compressed \(deflate\)"),
        (zlib.compress(ASKED.encode()), "", 415, r"compressed \(deflate\)"),
        (b"(brotli has no mark)", "br", 415, r"compressed \(br\)"),
        (b"[" * 30_000, "", 400, "not valid JSON: it is nested too deeply"),
        (b'{"n": ' + b"1" * 5000 + b"}", "", 400, "not valid JSON: Exceeds the limit"),
        (b'{"n": 1,}', "", 400, "not valid JSON: .* at character 8"),
        (ASKED.encode("utf-8-sig"), "", 200, "chat.completion"),
        (ASKED.encode(), "identity", 200, "chat.completion"),
        (ASKED.encode("utf-16"), "", 200, "chat.completion"),
    ],
    ids=range(13),
)
def test_bodies_that_cannot_be_read_say_why(
    body: bytes, encoding: str, status: int, words: str, server: ServerProcess
) -> None:
    headers = {"content-type": "application/json", **({"content-encoding": encoding} if encoding else {})}
    reply = httpx.post(server.url + "/v1/chat/completions", content=body, headers=headers)
    assert (reply.status_code, bool(re.search(words, reply.text))) == (status, True), reply.text
    assert "parsing the body" not in reply.text


def test_a_lone_surrogate_can_be_echoed(server: ServerProcess) -> None:
    body = b'{"prompt": "\\ud800a", "max_tokens": 1, "echo": true}'
    response = httpx.post(server.url + "/v1/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 200


def test_stream_headers(server: ServerProcess) -> None:
    body = {"messages": HI, "max_tokens": 2, "stream": True}
    with httpx.stream("POST", server.url + "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"
        assert response.headers["x-request-id"]
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: ") for line in lines)


def test_the_openapi_document_and_the_page(server: ServerProcess) -> None:
    document = httpx.get(server.url + "/openapi.json").json()
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/tokenize", "/ready"} <= set(document["paths"])
    responses = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert {"200", "400", "401", "404", "413", "429", "503"} <= set(responses)
    assert "422" not in responses
    assert httpx.get(server.url + "/docs").status_code == 200
    assert "docs" in httpx.get(server.url + "/").text


def test_metrics_names(server: ServerProcess) -> None:
    httpx.post(server.url + "/v1/completions", json={"prompt": "a", "max_tokens": 4})
    text = httpx.get(server.url + "/metrics").text
    for name in (
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:num_preemptions_total",
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        'vllm:request_success_total{finished_reason="length"',
        "vllm:prefix_cache_queries_total",
        "vllm:prefix_cache_hits_total",
        "vllm:time_to_first_token_seconds_bucket",
        "vllm:inter_token_latency_seconds_sum",
        "vllm:e2e_request_latency_seconds_count",
        "vllm:request_queue_time_seconds_count",
        "vllm:request_prefill_time_seconds_count",
        "vllm:request_decode_time_seconds_count",
        "vllm:iteration_tokens_total_bucket",
        "vllm:request_prompt_tokens_bucket",
        "vllm:request_generation_tokens_bucket",
        "vllm:request_max_num_generation_tokens_bucket",
        "vllm:request_params_n_bucket",
        "vllm:request_params_max_tokens_bucket",
        'vllm:cache_config_info{block_size="16",cache_dtype="auto",enable_prefix_caching="True"',
        'http_requests_total{handler="/v1/completions",method="POST",status="200"}',
        "http_request_duration_seconds_bucket",
    ):
        assert name in text, name
