"""Messages of the pipe come back as they were, and nothing else comes through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.contract.engine_config import EngineConfig, LoadAdapter
from model.contract.framing import MAX_FRAME_BYTES, FrameSplitter, FramingError, frame
from model.contract.messages import (
    Abort,
    AdapterLoaded,
    AddRequest,
    EngineFailed,
    EngineReady,
    EngineStats,
    FromEngine,
    LoadProgress,
    SequenceOutput,
    Shutdown,
    StepOutputs,
    TokenLogprob,
    UnloadAdapter,
    decode_from_engine,
    decode_to_engine,
    encode,
)
from model.contract.sampling_params import SamplingParams

_ids = st.integers(0, 2**40)
_tokens = st.lists(st.integers(0, 152_063), max_size=20)
_floats = st.floats(allow_nan=False, allow_infinity=False)
_logprob = st.builds(TokenLogprob, _floats, _tokens, st.lists(_floats, max_size=5), _ids)
_sampling = st.builds(
    SamplingParams,
    max_tokens=st.integers(0, 10**6),
    min_tokens=st.integers(0, 100),
    temperature=_floats,
    top_p=_floats,
    top_k=st.integers(0, 200_000),
    min_p=_floats,
    presence_penalty=_floats,
    frequency_penalty=_floats,
    repetition_penalty=_floats,
    logit_bias=st.lists(st.tuples(st.integers(0, 200_000), _floats), max_size=4).map(tuple),
    seed=st.none() | st.integers(-(2**63), 2**64 - 1),
    num_logprobs=st.none() | st.integers(0, 20),
    num_prompt_logprobs=st.none() | st.integers(0, 20),
    eos_token_ids=_tokens.map(tuple),
    stop_token_ids=_tokens.map(tuple),
    ignore_eos=st.booleans(),
    grammar=st.none() | st.text(st.characters(codec="utf-8")),
)
_text = st.text(st.characters(codec="utf-8"), max_size=20)
_output = st.builds(
    SequenceOutput,
    seq_id=_ids,
    token_ids=_tokens,
    finish_reason=st.none() | st.sampled_from(["stop", "length", "abort", "error"]),
    stop_token_id=st.none() | _ids,
    logprobs=st.none() | st.lists(_logprob, max_size=3),
    num_cached_tokens=st.none() | _ids,
    prompt_logprobs=st.none() | st.lists(_logprob, max_size=3),
    queue_time_s=st.none() | _floats,
    error=st.none() | _text,
)
_stats = st.builds(EngineStats, **dict.fromkeys(EngineStats.__struct_fields__, _ids) | {"longest_blocked_s": _floats})
_adapter_loaded = st.builds(AdapterLoaded, _ids, _ids, _ids, st.none() | _text)
_message = st.one_of(
    st.builds(StepOutputs, st.lists(_output, max_size=4), _stats),
    st.builds(
        AddRequest,
        seq_ids=st.lists(_ids, min_size=1, max_size=4).map(tuple),
        request_id=_text,
        prompt_ids=_tokens,
        sampling=_sampling,
        priority=st.integers(-100, 100),
    ),
    st.builds(Abort, st.lists(_ids, max_size=4).map(tuple)),
    st.just(Shutdown()),
    st.builds(LoadAdapter, _ids, _text),
    st.builds(UnloadAdapter, _ids),
    _adapter_loaded,
    st.builds(
        EngineReady,
        *(_ids, _ids, _ids, _ids, _ids, _ids, _text, _text),
        st.lists(_adapter_loaded, max_size=3).map(tuple),
    ),
    st.builds(EngineFailed, _text, st.booleans(), st.booleans()),
    st.builds(LoadProgress, _ids, _ids),
)


@settings(max_examples=150)
@given(_message)
def test_messages_come_back_as_they_were(message: Any) -> None:
    (payload,) = FrameSplitter().push(encode(message))
    back = decode_from_engine(payload) if isinstance(message, FromEngine) else decode_to_engine(payload)
    assert back == message
    assert type(back) is type(message)
    assert repr(back) == repr(message), "down to the types of what is inside"


@pytest.mark.parametrize("decode", [decode_to_engine, decode_from_engine])
@pytest.mark.parametrize(
    "value",
    [
        ["hello"],
        [1],
        ["step"],
        ["add", ["x"]],
        ["abort", [1.5]],
        ["step", [[1, ["a"]]], []],
        ["ready", 1, 2, 3, 4, 5, 6, 7, 8, 9],
        {},
        [],
        "nonsense",
    ],
)
def test_what_is_no_message_is_refused(value: object, decode: Callable[[bytes], object]) -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode(msgspec.msgpack.encode(value))


@settings(max_examples=100)
@given(st.lists(st.binary(max_size=40), max_size=6), st.lists(st.integers(1, 300), max_size=8))
def test_frames_come_whole_however_they_are_cut(payloads: list[bytes], cuts: list[int]) -> None:
    data = b"".join(map(frame, payloads))
    splitter = FrameSplitter()
    received: list[bytes] = []
    for cut in [*cuts, len(data)]:
        received += splitter.push(data[:cut])
        data = data[cut:]
    assert received == payloads


def test_a_frame_that_is_too_long_is_refused_before_it_comes() -> None:
    with pytest.raises(FramingError, match="1073741825 bytes"):
        FrameSplitter().push((MAX_FRAME_BYTES + 1).to_bytes(4, "little"))


@settings(max_examples=30)
@given(st.builds(EngineConfig, checkpoint_path=_text, seed=st.none() | st.integers(0, 2**63), block_size=_ids))
def test_engine_config_comes_back_as_it_was(config: EngineConfig) -> None:
    (payload,) = FrameSplitter().push(encode(config))
    assert decode_to_engine(payload) == config
