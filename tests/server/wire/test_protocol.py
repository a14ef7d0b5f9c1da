"""Lists that are long and wrong cost their sender one error, not the server an error for each item."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from server.wire.errors import validation_error
from server.wire.shapes.chat import ChatCompletionRequest
from server.wire.shapes.completions import CompletionRequest
from server.wire.shapes.tokens import TokenizeRequest

HI = [{"role": "user", "content": "hi"}]
MANY = 50_000


@pytest.mark.parametrize(
    ("wishes", "param"),
    [
        ({"messages": [{}] * 4000}, "messages[0]"),
        ({"messages": HI * MANY}, "messages"),
        ({"messages": [{"role": "user", "content": [1] * MANY}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{}] * 1000}] * 4000}, "messages[0].content[0]"),
        ({"messages": [{"role": "assistant", "tool_calls": [1] * MANY}]}, "messages[0].tool_calls"),
        ({"tools": [1] * MANY}, "tools"),
        ({"functions": [1] * 500}, "functions[0]"),
        ({"modalities": [1] * MANY}, "modalities[0]"),
        ({"stop": [1] * MANY}, "stop[0]"),
        ({"stop_token_ids": ["x"] * MANY}, "stop_token_ids"),
        ({"logit_bias": {str(i): "x" for i in range(MANY)}}, "logit_bias"),
    ],
)
def test_the_first_error_is_enough(wishes: dict[str, Any], param: str) -> None:
    body = {"messages": HI, **wishes}
    with pytest.raises(ValidationError) as caught:
        ChatCompletionRequest.model_validate(body)
    errors = caught.value.errors()
    assert len(errors) <= 4
    error = validation_error(errors, body)
    assert (error.param or "").startswith(param)
    assert len(error.message) < 1000


def test_other_routes_have_the_same_bounds() -> None:
    with pytest.raises(ValidationError) as caught:
        TokenizeRequest.model_validate({"messages": [1] * MANY, "tools": [1] * MANY})
    assert caught.value.error_count() == 2
    with pytest.raises(ValidationError) as caught:
        CompletionRequest.model_validate({"prompt": ["x", 1] * MANY, "stop": [1] * MANY})
    assert caught.value.error_count() <= 3
