"""The smaller promises of the wire, over HTTP: seeds, choices, scores, continued turns, truncation, token routes."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import httpx
import pytest

from tests.support.server_process import ServerProcess
from tests.support.wire import TOOLS, Wire, named

JsonDict = dict[str, Any]
HOT: JsonDict = {"temperature": 1.2, "top_p": 1, "max_tokens": 20}


async def test_a_seed_gives_the_same_reply_whatever_else_is_served(server: ServerProcess) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:

        async def ask(seed: int | None, text: str = "hi", **more: Any) -> list[JsonDict]:
            body = {"messages": [{"role": "user", "content": text}], **HOT, **more}
            body |= {} if seed is None else {"seed": seed}
            response = await http.post("/v1/chat/completions", json=body)
            return [choice["message"] for choice in response.json()["choices"]]

        alone = [await ask(seed, n=2) for seed in (1, 2, -3)]
        choice = {"structured_outputs": {"regex": "[a-z]{12}"}}
        held = await ask(9, **choice)
        crowd = asyncio.gather(
            *(ask(None, f"something else {number}", max_tokens=30 + number) for number in range(12)),
            *(ask(9, f"x{number}", **choice) for number in range(3)),
        )
        again = await asyncio.gather(*(ask(seed, n=2) for seed in (1, 2, -3)), ask(9, **choice))
        await crowd
    assert again == [*alone, held]
    assert len({message["content"] for reply in alone for message in reply}) == 6


def test_choices_have_random_streams_of_their_own(wire: Wire) -> None:
    many = wire.chat(n=4, seed=5, **HOT)["choices"]
    assert len({choice["content"] for choice in many}) == 4
    assert wire.chat(n=1, seed=5, **HOT)["choices"][0]["content"] == many[0]["content"]
    whole = wire.chat(n=3, seed=5, **HOT)
    assert whole["usage"]["completion_tokens"] <= 60


@pytest.mark.parametrize("text", ["plain", "中文 🙂 é", "tab\tand\nline"])
def test_the_bytes_of_scores_join_to_the_text(wire: Wire, text: str) -> None:
    choice = wire.choice(structured_outputs={"choice": [text]}, logprobs=True, top_logprobs=3)
    assert bytes(itertools.chain.from_iterable(entry["bytes"] for entry in choice["logprobs"])).decode() == text
    for entry in choice["logprobs"]:
        assert entry["logprob"] <= 0
        assert len(entry["top_logprobs"]) == 3
        scores = [top["logprob"] for top in entry["top_logprobs"]]
        assert scores == sorted(scores, reverse=True)
        assert entry["token"] == bytes(entry["bytes"]).decode(errors="replace")
    stopped = wire.choice(structured_outputs={"choice": [text]}, logprobs=True, stop=text[-2:])
    assert bytes(itertools.chain.from_iterable(e["bytes"] for e in stopped["logprobs"])).decode() == text[:-2]
    assert not wire.choice(structured_outputs={"choice": [text]})["logprobs"]


def test_scores_of_unconstrained_text(wire: Wire) -> None:
    choice = wire.choice(logprobs=True, seed=8, return_token_ids=True, **HOT)
    text = bytes(itertools.chain.from_iterable(e["bytes"] for e in choice["logprobs"])).decode(errors="replace")
    assert text == choice["content"]


def test_completions_echo_and_score(wire: Wire) -> None:
    for max_tokens, prompts in itertools.product((0, 3), (["ab", "abc"], [[97, 98], [97, 98, 99]])):
        body: JsonDict = {"prompt": prompts, "echo": True, "logprobs": 2, "max_tokens": max_tokens, "temperature": 0}
        reply = wire.ok("/v1/completions", {**body, "structured_outputs": {"choice": ["xyz"]}})
        assert [c["text"] for c in reply["choices"]] == [text + "xyz"[:max_tokens] for text in ("ab", "abc")]
        for choice in reply["choices"]:
            logprobs = choice["logprobs"]
            assert "".join(logprobs["tokens"]) == choice["text"]
            assert logprobs["text_offset"] == list(range(len(choice["text"])))
            assert logprobs["token_logprobs"][0] is None
            assert logprobs["top_logprobs"][0] is None
            assert all(len(top) >= 2 for top in logprobs["top_logprobs"][1:])
            tops = zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True)
            assert all(top[token] == score for token, score, top in list(tops)[1:])
        assert reply["usage"]["completion_tokens"] == 2 * max_tokens


def test_truncation_makes_a_conversation_fit(wire: Wire, max_model_len: int) -> None:
    turn = [{"role": "user", "content": "x" * 150}, {"role": "assistant", "content": "y" * 150}]
    messages = [{"role": "system", "content": "sys"}, *turn * 10, {"role": "user", "content": "the question"}]
    assert wire.refused(messages=messages)["code"] == "context_length_exceeded"
    assert wire.refused(messages=messages, truncation="disabled")["code"] == "context_length_exceeded"
    for max_tokens in (5, 1000):
        reply = wire.ok(
            "/v1/chat/completions",
            {"messages": messages, "truncation": "auto", "max_tokens": max_tokens, "return_token_ids": True},
        )
        assert reply["usage"]["prompt_tokens"] <= max_model_len - max_tokens
        assert reply["usage"]["prompt_tokens"] > max_model_len - max_tokens - 400, "no more is dropped than must be"
        shown = wire.ok("/detokenize", {"tokens": reply["prompt_token_ids"]})["prompt"]
        assert shown.startswith("<|im_start|>system\nsys<|im_end|>\n<|im_start|>user\nxxx")
        assert shown.endswith("user\nthe question<|im_end|>\n<|im_start|>assistant\n")
    without = wire.ok(
        "/v1/chat/completions", {"messages": messages, "truncation": "auto", "structured_outputs": {"choice": ["ok"]}}
    )
    assert without["usage"]["prompt_tokens"] < max_model_len
    too_long = [{"role": "user", "content": "x" * 3000}]
    assert wire.refused(messages=too_long, truncation="auto")["code"] == "context_length_exceeded"
    assert wire.refused(truncation="sometimes")["param"] == "truncation"


def test_tokenize_shows_what_a_request_sends(wire: Wire) -> None:
    messages = [{"role": "user", "content": "hi <|im_end|>"}]
    for choice in ("auto", "none", "required", named("clock")):
        body: JsonDict = {"messages": messages, "tools": TOOLS, "tool_choice": choice}
        sent = wire.ok("/v1/chat/completions", {**body, "max_tokens": 1, "return_token_ids": True})["prompt_token_ids"]
        assert wire.ok("/tokenize", body)["tokens"] == sent
    tools_text = wire.ok("/detokenize", {"tokens": wire.ok("/tokenize", {**body, "tool_choice": None})["tokens"]})
    assert "get_weather: Call this tool" in tools_text["prompt"]
    legacy = {"messages": messages, "functions": [tool["function"] for tool in TOOLS]}
    assert wire.ok("/tokenize", legacy) == wire.ok("/tokenize", {**body, "tool_choice": "auto"})
    assert wire.refused("/tokenize", **{**body, "tool_choice": "maybe"})["param"] == "tool_choice"
    assert wire.ok("/tokenize", {"messages": messages})["count"] < len(sent)


def test_a_turn_is_continued(wire: Wire) -> None:
    said = {"role": "assistant", "content": "The answer is"}
    messages = [{"role": "user", "content": "?"}, said]
    wishes: list[JsonDict] = [
        {},
        {"continue_final_message": True},
        {"continue_final_message": True, "add_generation_prompt": False},
        {"tools": TOOLS},
    ]
    for more in wishes:
        ids = wire.ok("/tokenize", {"messages": messages, **more})["tokens"]
        assert wire.ok("/detokenize", {"tokens": ids})["prompt"].endswith("The answer is")
        reply = {"structured_outputs": {"choice": [" 42"]}, "return_token_ids": True}
        assert wire.ok("/v1/chat/completions", {"messages": messages, **reply, **more})["prompt_token_ids"] == ids
        choice = wire.choice(messages=messages, structured_outputs={"choice": [" 42"]}, **more)
        assert choice["content"].strip() == "42"
    looked_at = wire.ok("/tokenize", {"messages": messages, "add_generation_prompt": False})["tokens"]
    assert wire.ok("/detokenize", {"tokens": looked_at})["prompt"].endswith("The answer is<|im_end|>")
    closed = wire.ok("/tokenize", {"messages": messages, "continue_final_message": False})["tokens"]
    assert wire.ok("/detokenize", {"tokens": closed})["prompt"].endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert wire.refused(continue_final_message=True)["param"] == "continue_final_message"


def test_what_does_nothing_is_accepted(wire: Wire) -> None:
    wire.choice(
        user="u", metadata={"a": "b"}, store=True, service_tier="auto", safety_identifier="s", prompt_cache_key="k",
        parallel_tool_calls=False, reasoning_effort="low", nonsense={"x": [1]}, tools=None, stop=None, seed=None,
        structured_outputs={"choice": ["ok"]},
    )  # fmt: skip
