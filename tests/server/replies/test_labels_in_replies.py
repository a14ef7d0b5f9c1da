"""Words of the ReAct format in replies that are none of its steps: over HTTP, streamed and not, to the letter."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.wire import CLOCK, TOOLS, WEATHER, Wire

JsonDict = dict[str, Any]
TEXTS = [
    "Lab\nObservation: blue.\nThought: be kind\nFinal Answer: acid",
    "Minutes\nAction: Bob calls.\nAction: Ann writes.",
    "Action: Q\nAction Input: x",
]
CALL = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
USER = {"role": "user", "content": "hi"}
STEPS: list[JsonDict] = [
    USER,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "noon"},
]
OLD_STEPS = [*STEPS, {"role": "assistant", "content": "It is noon."}, USER]


@pytest.mark.parametrize(
    "body",
    [
        {"messages": OLD_STEPS},
        {"messages": STEPS},
        {"messages": STEPS, "tools": TOOLS, "tool_choice": "none"},
        {"messages": [USER], "tools": TOOLS},
        {"messages": OLD_STEPS, "functions": [WEATHER, CLOCK]},
        {"messages": [*OLD_STEPS, {"role": "assistant", "content": "So:"}], "tools": TOOLS},
    ],
)
def test_they_are_text(wire: Wire, body: JsonDict) -> None:
    for text in TEXTS:
        # With tools a step may be said as well: the first letter decides, and a Q where a tool's name would be.
        bias = {str(ord(letter)): 100 for letter in (text[0], "Q")}
        choice = wire.choice(structured_outputs={"choice": [text]}, logit_bias=bias, max_tokens=200, **body)
        assert (choice["content"], choice["calls"], choice["finish_reason"]) == (text, [], "stop")


def test_where_no_tool_is_offered_any_more_a_result_is_answered(wire: Wire) -> None:
    body = {"messages": STEPS, "return_token_strs": True}
    prompt = "".join(wire.ok("/tokenize", body)["token_strs"])
    assert prompt.endswith("\nObservation: noon\nThought: I now know the final answer.\nFinal Answer:")
