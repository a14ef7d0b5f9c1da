"""One path: the joined stream is the unstreamed reply, for any outputs in any grouping."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from model.contract.errors import EngineUnavailableError
from model.contract.messages import SequenceOutput
from model.contract.sampling_params import SamplingParams
from prompts.stop import StopStrings
from server.conversion.generation_request import GenerationRequest
from server.engine.client import Prompt
from server.engine.handle import News, RequestHandle
from server.gates.direct_body import DirectBody
from server.replies import generation
from server.replies.chat import ChatReply
from server.replies.completion import CompletionReply
from server.replies.generation import Generation, TokenUsage
from server.replies.output_processor import ChoiceDelta
from server.replies.streaming import Reply, stream_events, whole_reply
from server.telemetry.metrics import Metrics
from server.wire.errors import dump_json
from server.wire.json_list import JsonList
from tests.support.vocabulary import byte_tokenizer, score

TOKENIZER = byte_tokenizer()


class Script:
    """Plays the engine for one request: batches of outputs, each delivered at once."""

    def __init__(self, request: GenerationRequest, batches: list[list[SequenceOutput]]) -> None:
        self.aborted: list[int] = []
        self.batches = batches
        self.handle = RequestHandle("test", range(request.num_choices), lambda _, ids: self.aborted.extend(ids))
        self.metrics = Metrics("test")
        of_model = self.metrics.of("test")
        self.generation = Generation(request, self.handle, TOKENIZER, of_model, arrived=time.monotonic() - 60)

    async def play(self) -> None:
        for batch in self.batches:
            for output in batch:
                self.handle.deliver(output)
            await asyncio.sleep(0)


def request_for(n: int = 1, **wishes: Any) -> GenerationRequest:
    sampling = SamplingParams(max_tokens=100, stop_token_ids=(ord("!"),))
    return GenerationRequest(prompts=(Prompt(list(b"Hi"), sampling),), n=n, **wishes)


class Body(DirectBody):
    """A client that keeps up now and then; what it got stands in order, whichever way it came."""

    def __init__(self, turns: Sequence[bool]) -> None:
        self.got = b""
        self.num_writes = 0
        self._turns = itertools.cycle(turns)

    def is_open(self) -> bool:
        return next(self._turns)

    def write(self, data: bytes) -> None:
        assert data
        self.got += data
        self.num_writes += 1


async def streamed(script: Script, reply: Reply, turns: Sequence[bool] = (False,)) -> list[dict[str, Any]]:
    playing = asyncio.create_task(script.play())
    body = Body(turns)
    async for piece in stream_events(script.generation, reply, body=body):
        body.got += piece
    await playing
    events = body.got.decode().split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data: ") for event in events)
    payloads = [event.removeprefix("data: ") for event in events]
    assert payloads.pop() == "[DONE]"
    assert all(dump_json(json.loads(payload)).decode() == payload for payload in payloads)
    return [json.loads(payload) for payload in payloads]


async def whole(script: Script, reply: Reply) -> dict[str, Any]:
    playing = asyncio.create_task(script.play())
    result = json.loads(await whole_reply(script.generation, reply))
    await playing
    return json.loads(dump_json(result))


def join_chat(chunks: list[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    """What a client makes of a chat stream."""
    choices: list[dict[str, Any]] = [
        {"role": "", "content": "", "logprobs": [], "ids": [], "end": None} for _ in range(n)
    ]
    for chunk in chunks:
        for piece in chunk["choices"]:
            choice, delta = choices[piece["index"]], piece["delta"]
            assert choice["end"] is None, "a chunk after the end"
            if "role" in delta:
                assert (choice["role"], delta["content"]) == ("", "")
            choice["role"] += delta.get("role", "")
            choice["content"] += delta.get("content", "")
            choice["logprobs"] += (piece["logprobs"] or {"content": []})["content"]
            choice["ids"] += piece.get("token_ids", [])
            choice["end"] = piece["finish_reason"]
            if choice["end"]:
                assert delta == {}
    return choices


def check_chat(n: int, batches: list[list[SequenceOutput]], turns: Sequence[bool] = (False,), **wishes: Any) -> None:
    request = request_for(n, num_logprobs=1, return_token_ids=True, **wishes)

    async def both() -> None:
        chat = ChatReply(request, "m", TOKENIZER, include_usage=True)
        chunks = await streamed(Script(request, batches), chat, turns)
        reply = await whole(Script(request, batches), ChatReply(request, "m", TOKENIZER))
        *rest, last = chunks
        assert last["choices"] == []
        assert last["usage"] == reply["usage"]
        assert all(chunk["usage"] is None for chunk in rest)
        assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1
        for joined, choice in zip(join_chat(rest, n), reply["choices"], strict=True):
            assert joined["role"] == "assistant"
            assert joined["content"] == choice["message"]["content"]
            assert joined["logprobs"] == choice["logprobs"]["content"]
            assert joined["ids"] == choice["token_ids"]
            assert joined["end"] == choice["finish_reason"]
            shown = bytes(b for entry in joined["logprobs"] for b in entry["bytes"])
            assert shown.decode(errors="replace") == joined["content"]

    asyncio.run(both())


def outputs_of(ids: list[int], index: int, finish: str, sizes: list[int]) -> list[SequenceOutput]:
    """One choice's outputs, in steps of the given sizes."""
    result = []
    position = 0
    for size in [*sizes, len(ids)]:
        piece = ids[position : position + size]
        position += size
        last = position >= len(ids)
        stopped = last and finish == "stop"
        result.append(
            SequenceOutput(
                index,
                piece,
                finish_reason=finish if last else None,
                stop_token_id=piece[-1] if stopped else None,
                logprobs=[score(i) for i in piece],
                num_cached_tokens=0 if not result else None,
                queue_time_s=0.01 if not result else None,
            )
        )
        if last:
            break
    return result


# Few characters, so that stop strings and broken characters are frequent.
IDS = st.lists(st.sampled_from([*b"ab!", 0xE4, 0xB8, 0xAD, 256, 300, 500]), min_size=1, max_size=14)


@settings(max_examples=70)
@given(
    st.lists(
        st.tuples(IDS, st.sampled_from(["stop", "length"]), st.lists(st.integers(1, 5), max_size=6)),
        min_size=1,
        max_size=3,
    ),
    st.lists(st.sampled_from(["a", "ab", "bab", "中", "a中", "�"]), max_size=3, unique=True),
    st.booleans(),
    st.integers(1, 4),
    st.lists(st.booleans(), min_size=1, max_size=4),
)
def test_joined_stream_equals_unstreamed_reply(
    choices: list[tuple[list[int], str, list[int]]],
    stops: list[str],
    include_stop: bool,
    batch_size: int,
    turns: list[bool],
) -> None:
    scripts = [outputs_of(ids, index, end, sizes) for index, (ids, end, sizes) in enumerate(choices)]
    everything = [o for step in itertools.zip_longest(*scripts) for o in step if o is not None]
    batches = [everything[i : i + batch_size] for i in range(0, len(everything), batch_size)]
    options = {"stops": tuple(stops), "include_stop_str_in_output": include_stop}
    check_chat(len(choices), batches, turns, **options)
    asyncio.run(check_plain(len(choices), batches, turns, **options))


async def check_plain(n: int, batches: list[list[SequenceOutput]], turns: Sequence[bool], **wishes: Any) -> None:
    """The events of plain text, which are written into a template, are those that are built."""
    plain = [[replace(output, logprobs=None) for output in batch] for batch in batches]
    request = request_for(n, **wishes)
    for kind in (ChatReply, CompletionReply):
        replies = [kind(request, "m", TOKENIZER, include_usage=True) for _ in range(2)]
        replies[1]._head = replies[0]._head
        replies[1]._has_plain_events = False
        template, built = [json.dumps(await streamed(Script(request, plain), reply, turns)) for reply in replies]
        assert template == built


def test_completion_stream_equals_unstreamed_reply_with_echo_and_scores() -> None:
    sampling = SamplingParams(max_tokens=9)
    request = GenerationRequest(
        prompts=(Prompt(list(b"Hi"), sampling), Prompt(list(b"yo"), sampling)),
        n=2,
        num_logprobs=1,
        return_token_ids=True,
        echo_texts=("Hi", "yo"),
        stops=("zz",),
    )
    batches = []
    for index in range(4):
        first, *rest = outputs_of(list(b"abczz!"), index, "length", [1, 2, 1])
        batches += [[replace(first, prompt_logprobs=[score(105)])], rest]

    async def both() -> None:
        chunks = await streamed(Script(request, batches), CompletionReply(request, "m", TOKENIZER, include_usage=True))
        reply = await whole(Script(request, batches), CompletionReply(request, "m", TOKENIZER))
        assert chunks.pop()["usage"] == reply["usage"]
        assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
        for choice in reply["choices"]:
            pieces = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
            assert "".join(p["text"] for p in pieces) == choice["text"] == ("Hi", "yo")[choice["index"] // 2] + "abc"
            assert pieces[0]["prompt_token_ids"] == choice["prompt_token_ids"]
            for key, values in choice["logprobs"].items():
                assert [v for p in pieces for v in p["logprobs"][key]] == values
            logprobs = choice["logprobs"]
            assert logprobs["text_offset"] == [0, 1, 2, 3, 4]
            assert "".join(logprobs["tokens"]) == choice["text"]
            assert logprobs["token_logprobs"][0] is None
            assert logprobs["top_logprobs"][0] is None
            assert pieces[-1]["finish_reason"] == choice["finish_reason"] == "stop"

    asyncio.run(both())


async def test_a_stop_string_ends_the_sequence_in_the_engine() -> None:
    request = request_for(stops=("b",))
    script = Script(request, [[SequenceOutput(0, [97])], [SequenceOutput(0, [98])], [SequenceOutput(0, [99])]])
    reply = await whole(script, ChatReply(request, "m", TOKENIZER))
    assert script.aborted == [0]
    assert reply["choices"][0]["message"]["content"] == "a"
    assert reply["usage"]["completion_tokens"] == 2


async def test_nobody_is_woken_for_tokens_while_the_client_keeps_up() -> None:
    outputs = [[SequenceOutput(0, [97 + i])] for i in range(20)]
    for turns, num_written in (((True,), 20), ((False,), 0), ((True, False), 10)):
        script = Script(request_for(), [*outputs, [SequenceOutput(0, [], "length")]])
        body = Body(turns)
        playing = asyncio.create_task(script.play())
        async for piece in stream_events(script.generation, ChatReply(request_for(), "m", TOKENIZER), body=body):
            body.got += piece
        await playing
        assert body.num_writes == num_written
        told = [json.loads(event[6:])["choices"][0]["delta"] for event in body.got.decode().split("\n\n")[:-2]]
        assert "".join(delta.get("content", "") for delta in told) == "abcdefghijklmnopqrst"


async def test_what_breaks_in_the_engines_callback_breaks_its_own_stream() -> None:
    class Broken(ChatReply):
        def events(self, deltas: Sequence[ChoiceDelta], usage: Callable[[], TokenUsage]) -> bytes:
            raise ValueError("a fault")

    script = Script(request_for(), [[SequenceOutput(0, [97])], [SequenceOutput(0, [98])]])
    playing = asyncio.create_task(script.play())
    events = stream_events(script.generation, Broken(request_for(), "m", TOKENIZER), body=Body((True,)))
    data = b"".join([piece async for piece in events])
    await playing
    assert json.loads(data.removeprefix(b"data: "))["error"]["type"] == "server_error"
    assert script.aborted == [0]


async def test_nothing_follows_what_broke_in_the_engines_callback() -> None:
    aborted: list[int] = []
    handle = RequestHandle("r", [7, 8], lambda _, seq_ids: aborted.extend(seq_ids))

    def take(news: News) -> bool:
        raise ValueError("a fault")

    waiting = asyncio.create_task(handle.next(take))
    await asyncio.sleep(0)  # it waits
    for number in range(3):
        handle.deliver(SequenceOutput(7, [number]))
    with pytest.raises(ValueError, match="a fault"):
        await waiting
    assert aborted == [7, 8]


async def test_a_failure_in_a_stream_is_its_last_event() -> None:
    request = request_for()
    script = Script(request, [[SequenceOutput(0, [97])]])

    async def fail_later() -> None:
        await script.play()
        script.handle.fail(EngineUnavailableError("gone"))

    failing = asyncio.create_task(fail_later())
    data = b"".join([e async for e in stream_events(script.generation, ChatReply(request, "m", TOKENIZER))])
    await failing
    *_, last = data.decode().strip().split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"] == {
        "message": "gone",
        "type": "engine_unavailable",
        "param": None,
        "code": "engine_unavailable",
    }
    assert "[DONE]" not in data.decode()


async def test_a_closed_generation_is_aborted_once() -> None:
    request = request_for(n=2)
    script = Script(request, [])
    script.generation.close()
    script.generation.close()
    assert script.aborted == [0, 1]


async def test_an_engine_error_for_one_sequence_is_a_500() -> None:
    request = request_for()
    script = Script(request, [[SequenceOutput(0, [], finish_reason="error", error="no room")]])
    with pytest.raises(Exception, match="no room") as caught:
        await whole(script, ChatReply(request, "m", TOKENIZER))
    assert getattr(caught.value, "status_code", None) == 500


async def test_figures_of_prompts_and_choices_under_vllms_names() -> None:
    short, long = SamplingParams(max_tokens=3), SamplingParams(max_tokens=50)
    request = GenerationRequest(prompts=(Prompt(list(b"Hi"), short), Prompt(list(b"longer"), long)), n=2)
    ends = [(0, b"abc"), (1, b"a"), (2, b"abcdefg"), (3, b"")]
    outputs = [SequenceOutput(index, list(text), finish_reason="length") for index, text in ends]
    script = Script(request, [outputs])
    await whole(script, CompletionReply(request, "m", TOKENIZER))

    def count_and_sum(name: str) -> tuple[float | None, float | None]:
        sample = script.metrics.registry.get_sample_value
        labels = {"model_name": "test"}
        return sample(f"vllm:request_{name}_count", labels), sample(f"vllm:request_{name}_sum", labels)

    assert count_and_sum("prompt_tokens") == (2, 2 + 6)
    assert count_and_sum("generation_tokens") == (4, 3 + 1 + 7 + 0)
    assert count_and_sum("max_num_generation_tokens") == (2, 3 + 7)
    assert count_and_sum("params_n") == (2, 2 + 2)
    assert count_and_sum("params_max_tokens") == (2, 3 + 50)


@pytest.mark.parametrize("has_begun", [False, True])
async def test_who_gives_up_in_the_queue_has_waited(has_begun: bool) -> None:
    script = Script(request_for(), [])
    if has_begun:
        script.handle.deliver(SequenceOutput(0, [97], queue_time_s=0.5))
        await anext(aiter(script.generation.deltas()))
    script.generation.close()
    waited = script.metrics.registry.get_sample_value("vllm:request_queue_time_seconds_sum", {"model_name": "test"})
    assert waited == pytest.approx(0.5 if has_begun else 60, rel=0.1)


def test_stop_strings_are_made_ready_once_however_many_choices_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[StopStrings] = []

    def make(stops: Sequence[str]) -> StopStrings:
        made.append(StopStrings(stops))
        return made[-1]

    monkeypatch.setattr(generation, "StopStrings", make)
    Script(request_for(128, stops=("a" * 1024,) * 4), [])
    assert len(made) == 1


async def test_what_came_at_once_is_not_worked_off_in_one_go() -> None:
    """Choices by the thousand, or tokens that nobody read for a while: in between the others have their turn."""
    outputs = [SequenceOutput(i % 8, [ord("a")], logprobs=[score(ord("a"))]) for i in range(4000)]
    script = Script(request_for(8, num_logprobs=5), [outputs + [SequenceOutput(i, [], "length") for i in range(8)]])
    for output in script.batches[0]:
        script.handle.deliver(output)
    turns = 0

    async def somebody_else() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(somebody_else())
    batches = [deltas async for deltas in script.generation.deltas()]
    other.cancel()
    assert len(batches) == 4000 * 6 // 4096 + 1
    assert turns >= len(batches) - 1
    texts = ["".join(d.text for deltas in batches for d in deltas if d.index == index) for index in range(8)]
    assert texts == ["a" * 500] * 8


async def test_the_scores_of_a_long_prompt_are_written_on_a_thread() -> None:
    here = threading.get_ident()
    written: list[bool] = []

    class Noting(CompletionReply):
        def chunks(self, delta: ChoiceDelta) -> Iterator[dict[str, Any]]:
            written.append(threading.get_ident() != here)
            return super().chunks(delta)

    for length in (3, 2000):
        for is_whole in (False, True):
            prompt = Prompt([65] * length, SamplingParams(max_tokens=1, num_prompt_logprobs=0))
            request = GenerationRequest(prompts=(prompt,), num_logprobs=0, echo_texts=("A" * length,))
            output = SequenceOutput(0, [], "length", prompt_logprobs=[score(65)] * (length - 1))
            script = Script(request, [[output]])
            reply = Noting(request, "m", TOKENIZER)
            if is_whole:
                assert len((await whole(script, reply))["choices"][0]["logprobs"]["tokens"]) == length
            else:
                assert len((await streamed(script, reply))[0]["choices"][0]["logprobs"]["tokens"]) == length
    assert written == [False, False, True, True]


def test_a_long_list_is_json_from_the_start() -> None:
    items: list[Any] = list(range(100_000))
    growing = JsonList(items)
    growing.extend([])
    growing.extend(["\ud800", {"a": [None]}])
    assert json.loads(dump_json({"l": growing.whole(), "e": JsonList().whole()})) == {
        "l": [*items, "?", {"a": [None]}],
        "e": [],
    }
