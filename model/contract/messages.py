"""What crosses the pipe between the HTTP process and the engine process, and how it is written down.

Pure but for msgspec: no tensors and no pickle, so neither process can make the other execute anything, and what is
read has the types below or is refused. A message is a MessagePack array whose first element names it; one
`StepOutputs` a step carries the outputs of every sequence.
"""

from __future__ import annotations

import msgspec

from model.contract.engine_config import EngineConfig, LoadAdapter
from model.contract.framing import frame
from model.contract.sampling_params import SamplingParams

# JSON has no infinity; OpenAI's API reports this for an impossible token.
MIN_LOGPROB = -9999.0


class _Part(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """A message or a part of one; it has no cycles, so the collector need not look at it."""


class TokenLogprob(_Part, frozen=True):
    """One token's log-probability and the most likely alternatives, most likely first.

    Attributes:
        top_ids: the alternatives.
        top_logprobs: the alternatives' log-probabilities.
        rank: the token's place among all, 1 for the likeliest; only for tokens of a prompt.
    """

    logprob: float
    top_ids: list[int]
    top_logprobs: list[float]
    rank: int | None = None


class AddRequest(_Part, tag="add", frozen=True, kw_only=True):
    """Generate `len(seq_ids)` independent continuations of one prompt (computed once).

    Attributes:
        seq_ids: one id a choice, never reused while the engine lives.
        request_id: names the HTTP request in log lines.
        prompt_ids: at least one token id.
        sampling: shared by all choices; choice i draws from the stream (seed, i).
        priority: lower is served first among the caller's requests.
        caller: names who sent it; callers share the engine.
        weight: the caller's share when there is not enough for all.
        num_before: sequences of the same HTTP request before these; its prompts take turns with other requests.
        cache_salt: cached prompt starts are shared only where it is equal.
        is_background: it takes what the others leave.
        adapter_id: the adapter to run it with; 0 for none.
        prediction_ids: the output that the client expects, perhaps empty; speculation tries it first.
    """

    seq_ids: tuple[int, ...]
    request_id: str
    prompt_ids: list[int]
    sampling: SamplingParams
    priority: int = 0
    caller: str = ""
    weight: int = 1
    num_before: int = 0
    cache_salt: str = ""
    is_background: bool = False
    adapter_id: int = 0
    prediction_ids: list[int] = []


class Abort(_Part, tag="abort", frozen=True):
    """Forget these sequences; unknown or finished ids are ignored. No further output comes for them."""

    seq_ids: tuple[int, ...]


class UnloadAdapter(_Part, tag="unload_adapter", frozen=True):
    """Take no new requests for an adapter, and let it go when the last of those before this has ended."""

    adapter_id: int


class Shutdown(_Part, tag="shutdown", frozen=True):
    """End the engine process now."""


class Ping(_Part, tag="ping", frozen=True):
    """Ask for a sign of life: between two steps the engine answers every message with `StepOutputs`."""


class SequenceOutput(_Part, frozen=True):
    """What one step did for one sequence. The one with a `finish_reason` is its last message.

    Attributes:
        seq_id: as in the request.
        token_ids: newly generated ids, in order; an ending id (eos, stop id) is included.
        finish_reason: None while it runs, else "stop", "length", "abort", "error", or "invalid" where the request
            asks for what cannot be done.
        stop_token_id: the id that ended it, when `finish_reason` is "stop".
        logprobs: one entry for each of `token_ids`, when asked for.
        num_cached_tokens: prompt tokens taken from the prefix cache; set in a sequence's first output.
        prompt_logprobs: one entry for each prompt token but the first, in the first output when asked for.
        queue_time_s: waiting time before the first step, in the first output.
        error: the reason, when `finish_reason` is "error", "abort" or "invalid".
        num_expected_tokens: how many of `token_ids` are as speculation or the client expected.
    """

    seq_id: int
    token_ids: list[int]
    finish_reason: str | None = None
    stop_token_id: int | None = None
    logprobs: list[TokenLogprob] | None = None
    num_cached_tokens: int | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    queue_time_s: float | None = None
    error: str | None = None
    num_expected_tokens: int = 0


class EngineStats(_Part, frozen=True):
    """State of the loop after a step; totals count since the engine started. Blocked: see `model.contract.watchdog`."""

    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0
    num_cached_blocks: int = 0
    num_preemptions_total: int = 0
    prefix_cache_queries_total: int = 0
    prefix_cache_hits_total: int = 0
    num_steps_total: int = 0
    num_step_tokens: int = 0
    longest_blocked_s: float = 0.0
    num_blocked_total: int = 0
    num_drafts_total: int = 0
    num_draft_tokens_total: int = 0
    num_accepted_tokens_total: int = 0


class StepOutputs(_Part, tag="step", frozen=True):
    """All outputs of one step (possibly none) and the state after it."""

    outputs: list[SequenceOutput]
    stats: EngineStats


class AdapterLoaded(_Part, tag="adapter_loaded", frozen=True):
    """Answers a `LoadAdapter`.

    Attributes:
        num_bytes: the adapter's memory on the device.
        rank: the largest rank of its factors.
        error: why it cannot be served, in one sentence; None where it can.
    """

    adapter_id: int
    num_bytes: int = 0
    rank: int = 0
    error: str | None = None


class EngineReady(_Part, tag="ready", frozen=True):
    """The checkpoint is loaded and the loop runs.

    Attributes:
        max_model_len: prompt and reply together; may be below the asked-for default when the KV cache is small.
        vocab_size: rows of the output layer; ids at or above it do not exist.
        num_blocks: KV cache blocks of `block_size` tokens.
        kv_cache_bytes: size of all blocks.
        weights_bytes: size of the loaded parameters.
        dtype: activation dtype, such as "bfloat16".
        device: torch's name of it, such as "cpu" or "cuda:0".
        adapters: one answer for each of `EngineConfig.adapters`.
    """

    max_model_len: int
    vocab_size: int
    num_blocks: int
    block_size: int
    kv_cache_bytes: int
    weights_bytes: int
    dtype: str
    device: str
    adapters: tuple[AdapterLoaded, ...] = ()


class EngineFailed(_Part, tag="failed", frozen=True):
    """The engine cannot go on (or start) and exits after this message.

    Attributes:
        message: one line, fit to show.
        is_startup_error: checkpoint or settings are wrong: restarting cannot help.
        wants_restart: another start will not meet what ended this one, even if it was the first.
    """

    message: str
    is_startup_error: bool
    wants_restart: bool = False


class LoadProgress(_Part, tag="progress", frozen=True):
    """Bytes of the checkpoint read so far; sent now and then during a long load."""

    loaded_bytes: int
    total_bytes: int


ToEngine = EngineConfig | AddRequest | Abort | LoadAdapter | UnloadAdapter | Ping | Shutdown
FromEngine = StepOutputs | AdapterLoaded | EngineReady | EngineFailed | LoadProgress

_ENCODER = msgspec.msgpack.Encoder()
_TO_ENGINE: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_FROM_ENGINE: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


def encode(message: msgspec.Struct) -> bytes:
    """Returns the whole frame, length included."""
    return frame(_ENCODER.encode(message))


def decode_to_engine(payload: bytes) -> ToEngine:
    """Reads a frame's payload.

    Raises:
        msgspec.MsgspecError: it is no message to an engine.
    """
    return _TO_ENGINE.decode(payload)


def decode_from_engine(payload: bytes) -> FromEngine:
    """Reads a frame's payload.

    Raises:
        msgspec.MsgspecError: it is no message of an engine.
    """
    return _FROM_ENGINE.decode(payload)
