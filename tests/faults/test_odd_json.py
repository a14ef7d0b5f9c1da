"""Any JSON in any field: an answer or an error that says what is wrong, and never a 500."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.wire.shapes.chat import ChatCompletionRequest
from server.wire.shapes.completions import CompletionRequest
from server.wire.shapes.tokens import DetokenizeRequest, TokenizeRequest
from tests.support.server_process import ServerProcess
from tests.support.wire import Wire

ROUTES = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
GOOD: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "tokens": [1]}
WORDS = st.sampled_from(
    ["role", "content", "type", "text", "function", "name", "user", "json_schema", "auto", "object"]
)
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=20) | WORDS
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
OPTIONS = settings(suppress_health_check=list(HealthCheck))


def fields_of(route: str) -> st.SearchStrategy[dict[str, Any]]:
    fields = sorted(ROUTES[route].model_fields)  # type: ignore[attr-defined]
    return st.dictionaries(st.sampled_from(fields), JSON, min_size=1, max_size=4)


def answer_is_sound(wire: Wire, route: str, wishes: dict[str, Any]) -> None:
    body = orjson.dumps({**GOOD, **wishes, "max_tokens": 2}, option=orjson.OPT_NON_STR_KEYS)
    response = wire.http.post(route, content=body, headers={"content-type": "application/json"})
    assert response.status_code in (200, 400, 404), (response.status_code, wishes, response.text)
    if response.status_code != 200:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]


@pytest.mark.parametrize("route", ROUTES)
def test_any_json_in_any_field(wire: Wire, server: ServerProcess, route: str) -> None:
    @settings(OPTIONS, max_examples=40)
    @given(fields_of(route))
    def check(wishes: dict[str, Any]) -> None:
        answer_is_sound(wire, route, wishes)

    check()
    assert "Traceback" not in server.log()


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES)
def test_any_json_in_any_field_at_length(wire: Wire, route: str) -> None:
    @settings(OPTIONS, max_examples=1000, derandomize=False)
    @given(fields_of(route))
    def check(wishes: dict[str, Any]) -> None:
        answer_is_sound(wire, route, wishes)

    check()
