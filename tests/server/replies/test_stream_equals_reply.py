"""Random requests: a stream, joined, is the unstreamed reply."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.hypothesis_settings import BATCHES
from tests.support.server_process import ServerProcess
from tests.support.wire import CLOCK, TOOLS, WEATHER, allowed, assert_same, events, flat_chat, fold_chat, named

BATCH = 15
JsonDict = dict[str, Any]

# What makes a random model write labels now and then.
SCAFFOLDING = {str(b): 6 for b in set(b"Thought:Action Input:Observation:Final Answer:\n")}

CALL: list[JsonDict] = [
    {"role": "user", "content": "weather?"},
    {
        "role": "assistant",
        "content": "let me see",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "12:00"},
]
messages = st.sampled_from(
    [
        [{"role": "user", "content": "hi"}],
        [{"role": "system", "content": "be brief"}, {"role": "user", "content": "你好 🙂"}],
        [{"role": "user", "content": "go on"}, {"role": "assistant", "content": "Thought: so"}],
        CALL,
        [*CALL, {"role": "assistant", "content": "noon"}, {"role": "user", "content": "and now?"}],
    ]
)
calling: st.SearchStrategy[JsonDict] = st.one_of(
    st.just({}),
    st.sampled_from(["auto", "none", "required", named("clock"), named("get_weather")]).map(
        lambda choice: {"tools": TOOLS, "tool_choice": choice}
    ),
    st.sampled_from(["auto", "required"]).map(lambda mode: {"tools": TOOLS, "tool_choice": allowed(mode, "clock")}),
    st.sampled_from(["auto", "none", {"name": "get_weather"}]).map(
        lambda choice: {"functions": [WEATHER, CLOCK], "function_call": choice}
    ),
)
formats: st.SearchStrategy[JsonDict] = st.one_of(
    st.just({}),
    st.just({}),
    st.sampled_from(
        [
            {"response_format": {"type": "json_object"}},
            {"response_format": {"type": "json_schema", "json_schema": {"schema": WEATHER["parameters"]}}},
            {"structured_outputs": {"choice": ["yes", "no, thanks", "可以\n🙂"]}},
            {"structured_outputs": {"regex": "[a-c]{2,9}(\\n[0-9]+)?"}},
        ]
    ),
)
sampling = st.fixed_dictionaries(
    {"seed": st.integers(0, 2**40), "max_tokens": st.integers(1, 40)},
    optional={
        "temperature": st.sampled_from([0, 0.7, 1.3]),
        "top_p": st.sampled_from([0.5, 1]),
        "top_k": st.sampled_from([0, 20]),
        "n": st.sampled_from([1, 2]),
        "stop": st.sampled_from(["a", ["e", "\nObservation"], ["\n", "中", "zzzzzzzz"], "T"]),
        "include_stop_str_in_output": st.booleans(),
        "stop_token_ids": st.sampled_from([[65], [10, 104]]),
        "logit_bias": st.sampled_from([SCAFFOLDING, {str(b): 20 for b in (10, *range(97, 110))}]),
        "logprobs": st.booleans(),
        "return_token_ids": st.booleans(),
        "min_tokens": st.just(1),
        "presence_penalty": st.sampled_from([-1, 1]),
    },
)
requests = st.tuples(messages, calling, formats, sampling).map(
    lambda parts: {"messages": parts[0], **parts[1], **parts[2], **parts[3]}
)


async def ask(http: httpx.AsyncClient, body: JsonDict) -> None:
    path = "/v1/chat/completions"
    whole, stream = await asyncio.gather(
        http.post(path, json=body),
        http.post(path, json={**body, "stream": True, "stream_options": {"include_usage": True}}),
    )
    assert whole.status_code == stream.status_code == 200, (body, whole.text, stream.text)
    said = flat_chat(whole.json())
    assert_same(fold_chat(events(stream.text)), said, body)
    for choice in said["choices"]:
        check_choice(body, choice)


def check_choice(body: JsonDict, choice: JsonDict) -> None:
    """What holds of any reply."""
    reason = choice["finish_reason"]
    assert (reason in ("tool_calls", "function_call")) <= bool(choice["calls"])
    if choice["calls"]:
        assert "tools" in body or "functions" in body
        assert reason in (
            ("length", "stop", "function_call") if "functions" in body else ("length", "stop", "tool_calls")
        )
        assert (choice["calls"][0]["name"] in ("clock", "get_weather")) or reason == "length"
    if body.get("tool_choice") == "none" or body.get("function_call") == "none":
        assert not choice["calls"]


@settings(BATCHES, max_examples=6)
@given(batch=st.lists(requests, min_size=BATCH, max_size=BATCH))
def test_a_joined_stream_is_the_reply(server: ServerProcess, batch: list[JsonDict]) -> None:
    async def run() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            await asyncio.gather(*(ask(http, body) for body in batch))

    asyncio.run(run())
