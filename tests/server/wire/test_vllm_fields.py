"""What vLLM reports beyond OpenAI's API: scores of prompts, names by ids, control tokens in the text, usage so far."""

from __future__ import annotations

from typing import Any

import pytest

from model.contract.messages import SequenceOutput, TokenLogprob
from model.contract.sampling_params import SamplingParams
from server.conversion.generation_request import GenerationRequest
from server.engine.client import Prompt
from server.replies.chat import ChatReply
from server.replies.completion import CompletionReply
from tests.server.replies.test_streaming import TOKENIZER, Script, streamed, whole
from tests.support.conversion import chat, completion
from tests.support.wire import Wire, events

JsonDict = dict[str, Any]
IM_END = TOKENIZER.im_end_id


@pytest.mark.parametrize("num_top", [0, 3, 20])
def test_scores_of_a_prompt(wire: Wire, num_top: int) -> None:
    """The same in a chat, in a completion for each choice, and as echo reports them."""
    ids = list(b"one fish")
    body: JsonDict = {"max_tokens": 1, "prompt_logprobs": num_top, "temperature": 0}
    reply = wire.ok("/v1/completions", {**body, "prompt": [ids, ids[:1]], "n": 2, "echo": True, "logprobs": num_top})
    first, second, third, _ = reply["choices"]
    assert first["prompt_logprobs"] == second["prompt_logprobs"]
    assert third["prompt_logprobs"] == [None]
    nothing, *entries = first["prompt_logprobs"]
    assert nothing is None
    assert len(entries) == len(ids) - 1
    echoed = first["logprobs"]
    for position, (token_id, entry) in enumerate(zip(ids[1:], entries, strict=True), start=1):
        own = entry[str(token_id)]
        assert own["decoded_token"] == chr(token_id)
        assert own["logprob"] == pytest.approx(echoed["token_logprobs"][position], abs=1e-3)
        assert len(entry) in (max(1, num_top), num_top + 1)
        assert (own["rank"] <= num_top) == (len(entry) == num_top)
        ranks = sorted(score["rank"] for score in entry.values())
        assert ranks[:num_top] == list(range(1, num_top + 1))
        scores = [score["logprob"] for score in sorted(entry.values(), key=lambda score: score["rank"])]
        assert scores == sorted(scores, reverse=True)
    answered = wire.ok("/v1/chat/completions", {**body, "messages": [{"role": "user", "content": "hi"}], "n": 2})
    assert len(answered["prompt_logprobs"]) == answered["usage"]["prompt_tokens"]
    assert answered["prompt_logprobs"][0] is None
    assert all(answered["prompt_logprobs"][1:])


def test_scores_of_a_prompt_are_not_streamed(wire: Wire) -> None:
    for path, prompt in (("/v1/chat/completions", {}), ("/v1/completions", {"prompt": "x"})):
        assert wire.refused(path, **prompt, prompt_logprobs=1, stream=True)["param"] == "prompt_logprobs"
        for count in (-1, 21, True):
            assert wire.refused(path, **prompt, prompt_logprobs=count)["param"] == "prompt_logprobs"


def test_twenty_alternatives_in_completions_too(wire: Wire) -> None:
    greedy = {"temperature": 0, "repetition_penalty": 1}
    (choice,) = wire.ok("/v1/completions", {"prompt": "x", "max_tokens": 2, "logprobs": 20, **greedy})["choices"]
    assert [len(top) for top in choice["logprobs"]["top_logprobs"]] == [20, 20]
    assert wire.refused("/v1/completions", prompt="x", logprobs=21)["param"] == "logprobs"


def test_every_chunk_tells_the_usage_so_far(wire: Wire) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    for path, prompt in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/completions", {"prompt": "hi"}),
    ):
        body = {**prompt, **options, "max_tokens": 20, "ignore_eos": True}
        usages = [chunk["usage"] for chunk in events(wire.http.post(path, json=body).text)]
        counts = [usage["completion_tokens"] for usage in usages]
        assert counts == sorted(counts)
        assert counts[-1] == 20
        assert {usage["total_tokens"] - usage["completion_tokens"] for usage in usages} == {usages[0]["prompt_tokens"]}
    body["stream_options"] = {"continuous_usage_stats": True}
    assert all("usage" not in chunk for chunk in events(wire.http.post("/v1/completions", json=body).text))


def scored(*ids: int) -> list[TokenLogprob]:
    return [TokenLogprob(-0.5, [token_id, 65], [-0.5, -1.0]) for token_id in ids]


def script_of(request: GenerationRequest, *ids: int) -> Script:
    outputs = [[SequenceOutput(0, [token_id], logprobs=scored(token_id))] for token_id in ids]
    return Script(request, [*outputs, [SequenceOutput(0, [], "length", logprobs=[])]])


def request_of(**wishes: Any) -> GenerationRequest:
    prompt = Prompt(list(b"Hi"), SamplingParams(max_tokens=100))
    return GenerationRequest(prompts=(prompt,), num_logprobs=2, **wishes)


async def test_tokens_are_named_by_their_ids() -> None:
    request = request_of(return_tokens_as_token_ids=True)
    ids = [97, 0xF0, 511]
    completed = await whole(script_of(request, *ids), CompletionReply(request, "m", TOKENIZER))
    logprobs = completed["choices"][0]["logprobs"]
    names = [f"token_id:{token_id}" for token_id in ids]
    assert logprobs["tokens"] == names
    assert [set(top) for top in logprobs["top_logprobs"]] == [{name, "token_id:65"} for name in names]
    answered = await whole(script_of(request, *ids), ChatReply(request, "m", TOKENIZER))
    content = answered["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == names
    assert bytes(byte for entry in content for byte in entry["bytes"]) == b"a\xf0"
    assert [top["token"] for top in content[0]["top_logprobs"]] == ["token_id:97", "token_id:65"]


@pytest.mark.parametrize("writer", [ChatReply, CompletionReply])
@pytest.mark.parametrize("show", [False, True])
async def test_control_tokens_are_text_where_asked_for(writer: Any, show: bool) -> None:
    request = request_of(show_special_tokens=show, stops=("|>!",))
    ids = [0xC3, 0xA9, IM_END, 97, 0xC3, IM_END, 33, 98]
    reply = await whole(script_of(request, *ids), writer(request, "m", TOKENIZER))
    (choice,) = reply["choices"]
    text = choice["message"]["content"] if writer is ChatReply else choice["text"]
    # Shown, they are part of the text that stops are looked for in; an unfinished character is broken by them.
    assert text == ("é<|im_end|>a\ufffd<|im_end" if show else "éa\ufffd!b")
    if writer is ChatReply:
        shown = bytes(byte for entry in choice["logprobs"]["content"] for byte in entry["bytes"])
        assert shown.decode(errors="replace") == text
    chunks = await streamed(script_of(request, *ids), writer(request, "m", TOKENIZER))
    pieces = [c["choices"][0] for c in chunks if c["choices"]]
    assert "".join(p["delta"].get("content", "") if writer is ChatReply else p["text"] for p in pieces) == text


@pytest.mark.parametrize("ask", [chat, completion])
async def test_the_wishes_reach_the_reply(ask: Any) -> None:
    asked = await ask(skip_special_tokens=False, return_tokens_as_token_ids=True, prompt_logprobs=4)
    assert (asked.show_special_tokens, asked.return_tokens_as_token_ids, asked.num_prompt_logprobs) == (True, True, 4)
    assert asked.prompts[0].sampling.num_prompt_logprobs == 4
    plain = await ask(skip_special_tokens=True, return_tokens_as_token_ids=False, prompt_logprobs=None)
    assert plain == await ask()
    both = await completion(echo=True, logprobs=2, prompt_logprobs=1)
    assert both.prompts[0].sampling.num_prompt_logprobs == 2


def test_a_prediction_changes_nothing_but_the_number_of_steps(wire: Wire) -> None:
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": "Say it again."}], "max_tokens": 60, "seed": 1,
        "temperature": 0.7, "structured_outputs": {"regex": "[a-z ]{60,80}"}
    }  # fmt: skip
    plain = wire.http.post("/v1/chat/completions", json=body).json()
    text = plain["choices"][0]["message"]["content"]
    parts = [{"type": "text", "text": text}]
    for content in (text, parts, "Something else entirely.", ""):
        body["prediction"] = {"type": "content", "content": content}
        reply = wire.http.post("/v1/chat/completions", json=body).json()
        assert reply["choices"] == plain["choices"]
        details = reply["usage"]["completion_tokens_details"]
        assert details["accepted_prediction_tokens"] <= reply["usage"]["completion_tokens"]
        if content in (text, parts):
            assert details["accepted_prediction_tokens"] > 30
            assert details["rejected_prediction_tokens"] <= 5
    for bad in ({"type": "other", "content": "a"}, {"content": "a"}, {"type": "content"}, "a"):
        assert wire.http.post("/v1/chat/completions", json=body | {"prediction": bad}).status_code == 400
    metrics = wire.http.get("/metrics").text
    for name in ("drafts", "draft_tokens", "accepted_tokens"):
        (line,) = [row for row in metrics.splitlines() if row.startswith(f"vllm:spec_decode_num_{name}_total{{")]
        assert float(line.split()[-1]) > 0
