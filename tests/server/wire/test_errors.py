"""The shape of errors, and which field they name."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from pydantic import ValidationError

from model.contract.errors import EngineUnavailableError, InvalidRequestError
from server.conversion.readers.chat import read_message
from server.wire.errors import ApiError, as_api_error, dump_json, validation_error
from server.wire.json_body import refuse_deep
from server.wire.shapes.chat import ChatCompletionRequest, ChatMessage
from server.wire.shapes.completions import CompletionRequest
from server.wire.shapes.tokens import TokenizeRequest

HI = [{"role": "user", "content": "hi"}]


def complain(body: dict[str, Any], kind: type = ChatCompletionRequest) -> dict[str, Any]:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)  # type: ignore[attr-defined]
    errors = [{**e, "loc": ("body", *e["loc"])} for e in caught.value.errors()]
    error = validation_error(errors, body)
    assert error.status_code == 400
    return error.body()["error"]


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "messages", "required"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": "hi"}, "messages", "list"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role", "required"),
        ({"messages": [*HI, {"role": "robot", "content": "x"}]}, "messages[1].role", "'system'"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "string; or .*list"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type", "required"),
        ({"messages": HI, "temperature": 2e6}, "temperature", "less than or equal to 1000000"),
        ({"messages": HI, "temperature": "hot"}, "temperature", "number"),
        ({"messages": HI, "temperature": float("nan")}, "temperature", ""),
        ({"messages": HI, "top_p": -0.1}, "top_p", "greater than or equal to 0"),
        ({"messages": HI, "n": 0}, "n", "greater than or equal to 1"),
        ({"messages": HI, "n": 129}, "n", "128"),
        ({"messages": HI, "n": True}, "n", "not true or false"),
        ({"messages": HI, "max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"messages": HI, "stop": ["x"] * 17}, "stop", "16"),
        ({"messages": HI, "stop": ["a", ""]}, "stop", "empty"),
        ({"messages": HI, "stop": 5}, "stop", "string; or .*list"),
        ({"messages": HI, "logit_bias": {"5": 101}}, "logit_bias.5", "100"),
        ({"messages": HI, "top_logprobs": 21}, "top_logprobs", "20"),
        ({"messages": HI, "stop_token_ids": [1, -1]}, "stop_token_ids", "token ids"),
        ({"messages": HI, "stream_options": 5}, "stream_options", ""),
        ({"messages": HI, "seed": 1 << 63}, "seed", ""),
    ],
)
def test_validation_names_the_field(body: dict[str, Any], param: str, words: str) -> None:
    error = complain(body)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert re.search(words, error["message"])


@pytest.mark.parametrize("prompt", [[], [[]], [1, "a"], [[1], "a"], 5, {"a": 1}, [1.5], [True], [-1], [["a"]], [None]])
def test_bad_prompts(prompt: Any) -> None:
    assert complain({"prompt": prompt}, CompletionRequest)["param"] == "prompt"


@pytest.mark.parametrize("prompt", ["", "a", ["a", ""], [1, 2], [[1], [2, 3]], None])
def test_good_prompts(prompt: Any) -> None:
    assert CompletionRequest.model_validate({"prompt": prompt}).prompt == prompt


def test_unknown_fields_and_nulls_are_fine() -> None:
    nulls = dict.fromkeys(name for name in ChatCompletionRequest.model_fields if name != "messages")
    request = ChatCompletionRequest.model_validate({"messages": HI, "unheard_of": 1, **nulls})
    assert request.temperature is None


def test_every_failure_has_all_four_keys() -> None:
    for failure in (InvalidRequestError("m", param="p", code="c"), EngineUnavailableError("m"), RuntimeError("secret")):
        error = as_api_error(failure)
        assert set(error.body()["error"]) == {"message", "type", "param", "code"}
        assert "secret" not in str(error.body())
    unavailable = as_api_error(EngineUnavailableError("m"))
    assert unavailable.status_code == 503
    assert 0 < int((unavailable.headers or {})["Retry-After"]) <= 60


def test_text_that_is_not_unicode_does_not_break_a_reply() -> None:
    assert dump_json({"a": ["\ud800x"]}) == b'{"a":["?x"]}'
    assert dump_json([10**30, 2**64 - 1, True, -1]) == b"[1000000000000000000000000000000,18446744073709551615,true,-1]"


def test_what_is_nested_is_told_back() -> None:
    text = b'{"a":[' * 175 + b"5" + b"]}" * 175
    data = json.loads(text)
    refuse_deep(text, data)
    assert dump_json(data) == text
    with pytest.raises(ApiError, match="nested too deeply"):
        refuse_deep(b"[" + text + b"]", json.loads(b"[" + text + b"]"))


def test_no_name_of_a_union_branch_is_a_field() -> None:
    """Whatever stands in the place of a field, the path that the error names is in the body, or is the missing one."""
    wrong: list[Any] = [7, "x", True, {"a": 1}, {"str": 1}, [], [7], [{}], [{"a": 1}], [[{}]]]
    message = {"role": "assistant", "content": "x", "tool_calls": [{"id": "a", "function": {"name": "f"}}]}
    bodies: list[tuple[type, dict[str, Any]]] = []
    for kind in (ChatCompletionRequest, CompletionRequest, TokenizeRequest):
        start = {"prompt": "x"} if kind is CompletionRequest else {"messages": HI}
        bodies += [(kind, {**start, name: value}) for name in kind.model_fields for value in wrong]
    bodies += [
        (ChatCompletionRequest, {"messages": [{**message, name: value}]})
        for name in ("content", "name", "tool_calls", "function_call", "tool_call_id")
        for value in wrong
    ]
    seen = set()
    for kind, body in bodies:
        try:
            kind.model_validate(body)
        except ValidationError as caught:
            errors = [{**e, "loc": ("body", *e["loc"])} for e in caught.errors()]
            error = validation_error(errors, body)
            place: Any = body
            steps = [int(step) if step.isdecimal() else step for step in re.findall(r"[^.\[\]]+", error.param or "")]
            for step in steps[:-1]:
                place = place[step]
            is_there = steps[-1] in place if isinstance(place, dict) else steps[-1] < len(place)
            assert is_there or error.message.endswith("field required."), error.message
            seen.add(error.param)
    assert len(seen) > 40


def test_articles_fit_their_roles() -> None:
    with pytest.raises(InvalidRequestError, match="the assistant message needs a text"):
        read_message(ChatMessage(role="assistant"), 0)
