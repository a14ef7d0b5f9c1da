"""The OpenAPI document is true: its examples work, and what is made of it by machine is answered as it says."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from hypothesis import given, settings

from server.wire import openapi
from server.wire.shapes.chat import ChatCompletionRequest
from server.wire.shapes.fields import MAX_TEMPERATURE
from tests.conftest import SMALL
from tests.support.hypothesis_settings import BATCHES
from tests.support.in_process_server import in_process_server
from tests.support.server_process import Server

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own imports
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def test_bounds_have_the_names_of_json_schema() -> None:
    schema = ChatCompletionRequest.model_json_schema()
    raw = {"components": schema}
    openapi._name_bounds(raw)
    text = json.dumps(raw)
    assert not any(f'"{name}":' in text for name in ("ge", "le", "gt", "lt"))
    temperature = schema["properties"]["temperature"]["anyOf"][0]
    assert temperature == {"type": "number", "minimum": 0, "maximum": MAX_TEMPERATURE}


@pytest.fixture(scope="module")
def narrow_server(demo_checkpoint: Path) -> Iterator[Server]:
    """A server whose replies are short, whatever is asked for."""
    with in_process_server(demo_checkpoint, *SMALL, "--max-model-len", "128") as server:
        yield server


@pytest.fixture(scope="module")
def document(narrow_server: Server) -> dict[str, Any]:
    response = httpx.get(f"{narrow_server.url}/openapi.json")
    return dict(response.json())


@pytest.fixture(scope="module")
def api(narrow_server: Server) -> Any:
    return schemathesis.openapi.from_url(f"{narrow_server.url}/openapi.json")


# A schema cannot say what contradicts what, so nearly all that is made of it is refused unless this is set.
PLAIN: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "hi"}],
        **dict.fromkeys(
            "model tools tool_choice functions function_call response_format structured_outputs audio modalities"
            " web_search_options truncation stream_options continue_final_message max_completion_tokens"
            " min_tokens stop_token_ids logit_bias".split()
        ),
        "logprobs": True,
        "max_tokens": 4,
    },
    "/v1/responses": {
        "input": "hi",
        **dict.fromkeys(
            "model tools tool_choice text structured_outputs truncation stream_options previous_response_id"
            " conversation background min_tokens stop_token_ids logit_bias".split()
        ),
        "max_output_tokens": 4,
    },
}
OPERATIONS = [
    ("/v1/chat/completions", "POST", 20),
    ("/v1/chat/completions/{completion_id}", "GET", 5),
    ("/v1/chat/completions/{completion_id}", "DELETE", 3),
    ("/v1/completions", "POST", 20),
    ("/v1/responses", "POST", 20),
    ("/v1/responses/{response_id}", "GET", 10),
    ("/v1/responses/{response_id}", "DELETE", 3),
    ("/v1/responses/{response_id}/cancel", "POST", 3),
    ("/v1/responses/{response_id}/input_items", "GET", 10),
    ("/v1/conversations", "POST", 8),
    ("/v1/conversations/{conversation_id}", "POST", 4),
    ("/v1/conversations/{conversation_id}", "GET", 3),
    ("/v1/conversations/{conversation_id}", "DELETE", 3),
    ("/v1/conversations/{conversation_id}/items", "POST", 6),
    ("/v1/conversations/{conversation_id}/items", "GET", 6),
    ("/v1/conversations/{conversation_id}/items/{item_id}", "GET", 3),
    ("/v1/conversations/{conversation_id}/items/{item_id}", "DELETE", 3),
    ("/tokenize", "POST", 8),
    ("/detokenize", "POST", 8),
    ("/tokenizer_info", "GET", 1),
    ("/v1/load_lora_adapter", "POST", 6),
    ("/v1/unload_lora_adapter", "POST", 6),
    ("/v1/models", "GET", 1),
    ("/v1/models/{model_id}", "GET", 8),
    ("/v1/messages", "POST", 10),
    ("/v1/messages/count_tokens", "POST", 6),
    ("/v1/files", "POST", 6),
    ("/v1/files", "GET", 8),
    ("/v1/files/{file_id}", "GET", 4),
    ("/v1/files/{file_id}", "DELETE", 4),
    ("/v1/files/{file_id}/content", "GET", 4),
    ("/v1/batches", "POST", 10),
    ("/v1/batches", "GET", 8),
    ("/v1/batches/{batch_id}", "GET", 4),
    ("/v1/batches/{batch_id}/cancel", "POST", 4),
    ("/health", "GET", 1),
    ("/ready", "GET", 1),
    ("/metrics", "GET", 1),
    ("/version", "GET", 1),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("times", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("path", "method", "count"), OPERATIONS)
def test_what_is_made_of_it_is_answered_as_it_says(
    narrow_server: Server, api: Any, path: str, method: str, count: int, times: int
) -> None:
    has_body = method == "POST" and "{" not in path
    modes = list(schemathesis.GenerationMode) if has_body else [schemathesis.GenerationMode.POSITIVE]
    wholes = [{}, PLAIN[path]] if path in PLAIN else [{}]
    statuses = set()
    for mode, fixed in itertools.product(modes, wholes):
        cases = api[path][method].as_strategy(generation_mode=mode)
        statuses |= answers(narrow_server.url, cases, max(1, times * count // 2), fixed)
    assert 200 in statuses or "{" in path or path == "/v1/batches" or "lora" in path  # what is made up is not there


def answers(url: str, cases: Any, count: int, fixed: dict[str, Any]) -> set[int]:
    """Sends requests, some fields of them fixed, and checks what comes back; returns the statuses."""
    statuses = set()

    @settings(BATCHES, max_examples=count)
    @given(case=cases)
    def send(case: Any) -> None:
        if isinstance(case.body, dict):
            case.body |= fixed
            if isinstance(case.body.get("n"), int):
                case.body["n"] = min(case.body["n"], 3)
        response = case.call(base_url=url, timeout=120)
        case.validate_response(response, checks=CHECKS)
        statuses.add(response.status_code)
        if response.status_code >= 400:
            names = {"message", "type"} if "/v1/messages" in case.path else {"message", "type", "param", "code"}
            assert set(response.json()["error"]) == names

    send()
    return statuses


def test_no_operation_is_left_out(document: dict[str, Any]) -> None:
    operations = {(path, method.upper()) for path, item in document["paths"].items() for method in item}
    assert operations == {(path, method) for path, method, _ in OPERATIONS}


EXAMPLES = [
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens",
    "/tokenize", "/detokenize",
]  # fmt: skip


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "components": document["components"]}


@pytest.mark.parametrize("path", EXAMPLES)
def test_its_examples_are_requests_that_work(server: Server, document: dict[str, Any], path: str) -> None:
    operation = document["paths"][path]["post"]
    content = operation["requestBody"]["content"]["application/json"]
    reply_schema = resolved(document, operation["responses"]["200"]["content"]["application/json"]["schema"])
    assert content["examples"]
    for name, example in content["examples"].items():
        jsonschema.validate(example["value"], resolved(document, content["schema"]))
        response = httpx.post(server.url + path, json=example["value"], timeout=60)
        assert response.status_code == 200, (name, response.text)
        if not example["value"].get("stream"):
            jsonschema.validate(response.json(), reply_schema)


def test_every_field_of_the_main_routes_is_there(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    fields = schemas["ChatCompletionRequest"]["properties"]
    assert {"messages", "tools", "tool_choice", "functions", "function_call", "response_format", "stop", "seed"} <= set(
        fields
    )
    without = [name for name, field in fields.items() if "description" not in field]
    assert set(without) <= {
        "stream_options", "top_p", "min_p", "presence_penalty", "frequency_penalty", "logprobs", "modalities", "audio",
        "web_search_options",
    }  # fmt: skip
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses"):
        assert "text/event-stream" in document["paths"][path]["post"]["responses"]["200"]["content"]
