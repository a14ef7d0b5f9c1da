"""Legacy completions, /v1/models and the token routes against the real server."""

from __future__ import annotations

from typing import Any

import httpx
import openai

from tests.support.readable_requests import GREEDY, HI, READABLE
from tests.support.server_process import ServerProcess

# mypy: disable-error-code="call-overload,arg-type"


def test_text_and_ids_are_the_same_prompt(client: openai.OpenAI) -> None:
    prompts: list[Any] = ["hello", list(b"hello"), ["hello"], [list(b"hello")]]
    replies = [client.completions.create(model="Qwen", prompt=p, max_tokens=8, **READABLE) for p in prompts]
    assert len({r.choices[0].text for r in replies}) == 1
    assert {r.usage.prompt_tokens for r in replies if r.usage} == {5}
    assert replies[0].object == "text_completion"


def test_sixteen_tokens_are_the_default(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="Qwen", prompt="hello", **READABLE)
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 16


def test_many_prompts_times_n(client: openai.OpenAI) -> None:
    alone = [client.completions.create(model="Qwen", prompt=p, max_tokens=6, **READABLE) for p in ("one", "two")]
    reply = client.completions.create(model="Qwen", prompt=["one", "two"], n=2, max_tokens=6, **READABLE)
    assert [c.index for c in reply.choices] == [0, 1, 2, 3]
    texts = [c.text for c in reply.choices]
    assert texts == [alone[0].choices[0].text] * 2 + [alone[1].choices[0].text] * 2
    streamed = ["", "", "", ""]
    for chunk in client.completions.create(
        model="Qwen", prompt=["one", "two"], n=2, max_tokens=6, stream=True, **READABLE
    ):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == texts


def test_echo_scores_a_prompt_without_generating(client: openai.OpenAI) -> None:
    """As lm-eval asks."""
    reply = client.completions.create(model="Qwen", prompt="abcd", max_tokens=0, echo=True, logprobs=1, **GREEDY)
    (choice,) = reply.choices
    assert choice.text == "abcd"
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["a", "b", "c", "d"]
    assert logprobs.text_offset == [0, 1, 2, 3]
    scores = logprobs.token_logprobs or []
    assert scores[0] is None
    assert all(s is not None and s < 0 for s in scores[1:])
    assert choice.finish_reason == "length"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 0
    one_more = client.completions.create(model="Qwen", prompt="abcd", max_tokens=1, echo=True, logprobs=1, **GREEDY)
    again = one_more.choices[0].logprobs
    assert again is not None
    assert len(again.tokens or []) == 5
    assert (again.token_logprobs or [])[1:4] == scores[1:]


def test_scores_of_generated_tokens_agree_with_scoring_them(client: openai.OpenAI) -> None:
    said = client.completions.create(
        model="Qwen",
        prompt="abc",
        max_tokens=6,
        logprobs=5,
        **{**READABLE, "extra_body": {"return_token_ids": True, "repetition_penalty": 1.0}},
    ).model_dump()["choices"][0]
    ids = [*b"abc", *said["token_ids"]]
    scored = client.completions.create(model="Qwen", prompt=ids, max_tokens=0, echo=True, logprobs=5)
    theirs = scored.choices[0].logprobs
    assert theirs is not None
    for ours, other in zip(said["logprobs"]["token_logprobs"], (theirs.token_logprobs or [])[3:], strict=True):
        assert abs(ours - other) < 1e-3
    assert said["prompt_token_ids"] == [*b"abc"]
    assert said["logprobs"]["text_offset"] == list(range(6))


def test_offsets_count_characters_that_lie_over_several_tokens(client: openai.OpenAI) -> None:
    wish = {"extra_body": {"structured_outputs": {"choice": ["é🙂a"]}}}
    for stream in (False, True):
        reply = client.completions.create(
            model="Qwen", prompt="h 🙂x", max_tokens=9, echo=True, logprobs=0, stream=stream, **wish
        )
        offsets = [o for part in (reply if stream else [reply]) for o in part.choices[0].logprobs.text_offset]
        assert offsets[:7] == [0, 1, 2, 2, 2, 2, 3]
        assert offsets[7:14] == [4, 4, 5, 5, 5, 5, 6]


def test_padding_ids_are_allowed(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="Qwen", prompt=[511, 500, 97], max_tokens=2, echo=True, **READABLE)
    assert reply.choices[0].text.startswith("a")


def test_models(client: openai.OpenAI, server: ServerProcess, max_model_len: int) -> None:
    models = client.models.list().data
    names = [m.id for m in models]
    assert names == ["Qwen-Demo", "Qwen"]
    assert all(m.object == "model" and (m.model_extra or {})["max_model_len"] == max_model_len for m in models)
    for name in names:
        assert client.models.retrieve(name).id == name
    for name in names:
        reply = client.completions.create(model=name, prompt="a", max_tokens=1)
        assert reply.model == name


def test_tokenize_and_back(server: ServerProcess) -> None:
    with httpx.Client(base_url=server.url) as http:
        text = http.post("/tokenize", json={"prompt": "hé<|im_end|>", "return_token_strs": True}).json()
        assert text["tokens"] == list("hé<|im_end|>".encode())
        assert text["count"] == len(text["tokens"]) == len(text["token_strs"])
        assert text["max_model_len"] > 0
        chat = http.post("/tokenize", json={"messages": HI}).json()
        shown = http.post("/detokenize", json={"tokens": chat["tokens"]}).json()["prompt"]
        assert shown == (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\nTell me something.<|im_end|>\n<|im_start|>assistant\n"
        )
        closed = http.post("/tokenize", json={"messages": HI, "add_generation_prompt": False}).json()
        assert chat["tokens"][: closed["count"]] == closed["tokens"]
        opted = http.post("/tokenize", json={"prompt": "<|im_end|>", "add_special_tokens": True}).json()
        assert opted["tokens"] == [258]
        assert http.post("/tokenize", json={"prompt": ""}).json()["tokens"] == []
        assert http.post("/tokenize", json={}).status_code == 400
        assert http.post("/detokenize", json={"tokens": [511, 97]}).json() == {"prompt": "a"}
        beyond = http.post("/detokenize", json={"tokens": [97, 512, 99999]})
        assert (beyond.status_code, beyond.json()["error"]["param"]) == (400, "tokens")
        assert "no token 512: ids go from 0 to 511" in beyond.json()["error"]["message"]
        broken = {"tokens": [97, 0xE6, 0xA0]}
        assert http.post("/detokenize", json=broken).json() == {"prompt": "a\ufffd"}
        assert http.post("/detokenize", json=broken | {"errors": "ignore"}).json() == {"prompt": "a"}
        strict = http.post("/detokenize", json=broken | {"errors": "strict"})
        assert strict.status_code == 400 and "byte 1" in strict.json()["error"]["message"]
        ids = http.post("/tokenize", json={"prompt": "<|im_end|>", "allowed_special": ["<|im_end|>"]}).json()["tokens"]
        assert ids == [258]
        assert "version" in http.get("/version").json()
