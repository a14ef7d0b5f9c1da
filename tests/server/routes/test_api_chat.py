"""Chat completions against the real server, through the official SDK."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from tests.support.readable_requests import GREEDY, HI, READABLE

# The SDK's types want literals everywhere; these tests send plain dicts on purpose.
# mypy: disable-error-code="call-overload,arg-type"


def test_a_reply_has_everything(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="Qwen", messages=HI, max_tokens=6, **READABLE)
    assert reply.id.startswith("chatcmpl-")
    assert (reply.object, reply.model) == ("chat.completion", "Qwen")
    (choice,) = reply.choices
    assert (choice.message.role, choice.message.refusal, choice.finish_reason) == ("assistant", None, "length")
    assert len(choice.message.content or "") == 6
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 6
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 6
    assert reply.usage.prompt_tokens_details is not None


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    wishes: dict[str, Any] = {"model": "Qwen", "messages": HI, "max_tokens": 20, "logprobs": True, "top_logprobs": 2}
    reply = client.chat.completions.create(**wishes, **READABLE)
    stream = client.chat.completions.create(**wishes, **READABLE, stream=True, stream_options={"include_usage": True})
    *chunks, last = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    assert chunks[-1].choices[0].finish_reason == reply.choices[0].finish_reason == "length"
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert text == reply.choices[0].message.content
    assert last.choices == []
    assert last.usage is not None
    assert reply.usage is not None
    assert last.usage.completion_tokens == reply.usage.completion_tokens == 20
    assert all(c.usage is None for c in chunks)
    assert reply.choices[0].logprobs is not None
    tokens = [t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content or []]
    assert tokens == reply.choices[0].logprobs.content
    assert bytes(b for t in tokens for b in t.bytes or []).decode() == text
    assert all(len(t.top_logprobs) == 2 for t in tokens)


def test_stop_strings_in_stream_and_not(client: openai.OpenAI) -> None:
    wishes: dict[str, Any] = {"model": "Qwen", "messages": HI, "max_tokens": 40, **READABLE}
    text = client.chat.completions.create(**wishes).choices[0].message.content or ""
    stop = text[10:13]
    expected = text[: text.index(stop)]
    reply = client.chat.completions.create(**wishes, stop=["@@@", stop])
    assert reply.choices[0].message.content == expected
    assert reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].model_dump()["stop_reason"] == stop
    chunks = list(client.chat.completions.create(**wishes, stop=stop, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == expected
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_choices_are_independent_and_seeds_reproduce_them(client: openai.OpenAI) -> None:
    def texts(seed: int, n: int) -> list[str | None]:
        reply = client.chat.completions.create(
            model="Qwen", messages=HI, max_tokens=12, n=n, seed=seed, temperature=1.5, logit_bias=READABLE["logit_bias"]
        )
        assert [c.index for c in reply.choices] == list(range(n))
        return [c.message.content for c in reply.choices]

    first = texts(7, 3)
    assert len(set(first)) == 3
    assert texts(7, 3) == first
    assert texts(7, 1) == first[:1]
    assert texts(8, 3) != first


def test_cached_prompt_tokens_are_told(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "the same long question, word for word, " * 4}]
    for expected_hit in (False, True):
        reply = client.chat.completions.create(model="Qwen", messages=messages, max_tokens=1, n=2)
        assert reply.usage is not None
        details = reply.usage.prompt_tokens_details
        assert details is not None
        cached = details.cached_tokens or 0
        assert cached % 16 == 0
        assert cached < reply.usage.prompt_tokens
        if expected_hit:
            assert cached > 100


def test_n_choices_in_one_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="Qwen", messages=HI, max_tokens=5, n=3, stream=True, **READABLE)
    texts = ["", "", ""]
    ends: list[int] = []
    for chunk in stream:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        if choice.finish_reason:
            ends.append(choice.index)
    assert sorted(ends) == [0, 1, 2]
    assert len(set(texts)) == 1, "greedy choices are equal"
    assert len(texts[0]) == 5


def test_token_ids_are_returned_when_asked_for(client: openai.OpenAI) -> None:
    extra = {"return_token_ids": True, "repetition_penalty": 1.0, "ignore_eos": True}
    wishes: dict[str, Any] = {"model": "Qwen", "messages": HI, "max_tokens": 9, "temperature": 0, "extra_body": extra}
    reply = client.chat.completions.create(**wishes).model_dump()
    assert len(reply["choices"][0]["token_ids"]) == 9
    assert len(reply["prompt_token_ids"]) == reply["usage"]["prompt_tokens"]
    chunks = [c.model_dump() for c in client.chat.completions.create(**wishes, stream=True)]
    assert chunks[0]["prompt_token_ids"] == reply["prompt_token_ids"]
    ids = [i for c in chunks for i in c["choices"][0].get("token_ids") or []]
    assert ids == reply["choices"][0]["token_ids"]


def test_the_end_of_text_ends_a_reply(client: openai.OpenAI) -> None:
    im_end = 256 + 2
    wishes: dict[str, Any] = {"model": "Qwen", "messages": HI, "temperature": 0, "max_tokens": 7}
    forced = {"logit_bias": {str(im_end): 100}}
    reply = client.chat.completions.create(**wishes, **forced)
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("", "stop")
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 1
    late = client.chat.completions.create(**wishes, **forced, extra_body={"min_tokens": 3})
    assert late.usage is not None
    assert late.usage.completion_tokens == 4
    never = client.chat.completions.create(**wishes, **forced, extra_body={"ignore_eos": True})
    assert (never.choices[0].finish_reason, never.choices[0].message.content) == ("length", "")


def test_the_default_budget_is_the_rest_of_the_context(client: openai.OpenAI, max_model_len: int) -> None:
    messages = [{"role": "user", "content": "x" * (max_model_len - 100)}]
    reply = client.chat.completions.create(model="Qwen", messages=messages, **READABLE)
    assert reply.usage is not None
    assert reply.usage.total_tokens == max_model_len
    assert reply.choices[0].finish_reason == "length"


async def test_many_streams_at_once_each_say_what_they_say_alone(async_client: openai.AsyncOpenAI) -> None:
    async def one(number: int) -> str:
        messages = [{"role": "user", "content": f"question {number % 8}"}]
        stream = await async_client.chat.completions.create(
            model="Qwen", messages=messages, max_tokens=24, stream=True, **READABLE
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    alone = [await one(number) for number in range(8)]
    assert len(set(alone)) > 1
    together = await asyncio.gather(*(one(number) for number in range(32)))
    assert together == alone * 4


def test_plain_greedy_text_survives_broken_characters(client: openai.OpenAI) -> None:
    wishes: dict[str, Any] = {"model": "Qwen", "messages": HI, "max_tokens": 60, **GREEDY}
    whole = client.chat.completions.create(**wishes).choices[0].message.content
    chunks = client.chat.completions.create(**wishes, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant"])
def test_roles_and_places(client: openai.OpenAI, role: str) -> None:
    messages = [
        *HI,
        {"role": role, "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "n"},
    ]
    assert client.chat.completions.create(model="Qwen", messages=messages, max_tokens=1).choices
