"""What crosses the pipe between the HTTP process and the engine process, and how it is written down.

Pure but for orjson: no tensors and no pickle, so neither process can make the other execute anything.
A frame is a 4-byte little-endian length and a JSON array whose first element names the message.
Outputs travel as arrays, not objects: one `StepOutputs` a step carries those of every sequence.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

import orjson

from model.contract.sampling_params import SamplingParams

FRAME_HEADER = struct.Struct("<I")
MAX_FRAME_BYTES = 1 << 30

# JSON has no infinity; OpenAI's API reports this for an impossible token.
MIN_LOGPROB = -9999.0


class TokenLogprob(NamedTuple):
    """One token's log-probability and the most likely alternatives, most likely first.

    Attributes:
        logprob: of the token.
        top_ids: the alternatives.
        top_logprobs: theirs.
        rank: of the token, 1 for the likeliest; only for tokens of a prompt.
    """

    logprob: float
    top_ids: list[int]
    top_logprobs: list[float]
    rank: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AddRequest:
    """Generate `len(seq_ids)` independent continuations of one prompt (computed once).

    Attributes:
        seq_ids: one id a choice, never reused while the engine lives.
        request_id: of the HTTP request, for log lines.
        prompt_ids: at least one token id.
        sampling: shared by all choices; choice i draws from the stream (seed, i).
        priority: lower is served first among the caller's.
        caller: whose request it is; callers share the engine.
        weight: the caller's part when there is not enough for all.
        num_before: sequences of the same HTTP request before these; its prompts take turns with other requests.
        cache_salt: cached prompt starts are shared only where it is equal.
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


@dataclass(frozen=True, slots=True)
class Abort:
    """Forget these sequences; unknown or finished ids are ignored. No further output comes for them."""

    seq_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Shutdown:
    """End the engine process now."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Say something: an engine between two steps answers with `StepOutputs`, as it does to every message."""


class SequenceOutput(NamedTuple):
    """What one step did for one sequence. The one with a `finish_reason` is its last message.

    Attributes:
        seq_id: as in the request.
        token_ids: newly generated ids, in order; an ending id (eos, stop id) is included.
        finish_reason: None while it runs, else "stop", "length", "abort", "error", or "invalid" where the request
            asks for what cannot be done.
        stop_token_id: the id that ended it, when `finish_reason` is "stop".
        logprobs: one entry for each of `token_ids`, when asked for.
        num_cached_tokens: prompt tokens taken from the prefix cache; set in a sequence's first output.
        prompt_logprobs: for each prompt token but the first, in the first output when asked for.
        queue_time_s: waiting time before the first step, in the first output.
        error: why, when `finish_reason` is "error", "abort" or "invalid".
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


class EngineStats(NamedTuple):
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


class StepOutputs(NamedTuple):
    """All outputs of one step (possibly none) and the state after it."""

    outputs: list[SequenceOutput]
    stats: EngineStats


class EngineReady(NamedTuple):
    """The checkpoint is loaded and the loop runs.

    Attributes:
        max_model_len: prompt and reply together; may be below the asked-for default when the KV cache is small.
        vocab_size: rows of the output layer; ids at or above it do not exist.
        num_blocks: KV cache blocks of `block_size` tokens.
        kv_cache_bytes: their size.
        weights_bytes: size of the loaded parameters.
        dtype: activation dtype, such as "bfloat16".
        device: such as "cpu" or "cuda:0".
        load_s: seconds the load took.
    """

    max_model_len: int
    vocab_size: int
    num_blocks: int
    block_size: int
    kv_cache_bytes: int
    weights_bytes: int
    dtype: str
    device: str
    load_s: float


class EngineFailed(NamedTuple):
    """The engine cannot go on (or start) and exits after this message.

    Attributes:
        message: one line, fit to show.
        is_startup_error: a mistake of the person who started it (checkpoint, settings): restarting cannot help.
        wants_restart: another start will not meet what ended this one, even if it was the first.
    """

    message: str
    is_startup_error: bool
    wants_restart: bool = False


class LoadProgress(NamedTuple):
    """Bytes of the checkpoint read so far; sent now and then during a long load."""

    loaded_bytes: int
    total_bytes: int


ToEngine = AddRequest | Abort | Ping | Shutdown
FromEngine = StepOutputs | EngineReady | EngineFailed | LoadProgress


def encode(message: ToEngine | FromEngine) -> bytes:
    """Returns the whole frame, length included."""
    body: list[object]
    match message:
        case StepOutputs(outputs, stats):
            body = ["step", outputs, stats]
        case AddRequest():
            body = ["add", message]
        case Abort():
            body = ["abort", message.seq_ids]
        case Ping():
            body = ["ping"]
        case Shutdown():
            body = ["shutdown"]
        case EngineReady():
            body = ["ready", *message]
        case EngineFailed():
            body = ["failed", *message]
        case LoadProgress():
            body = ["progress", *message]
    payload = orjson.dumps(body, default=tuple)  # named tuples are arrays here
    return FRAME_HEADER.pack(len(payload)) + payload


def decode(payload: bytes) -> ToEngine | FromEngine:
    """Reads a frame's payload (without its length).

    Raises:
        ValueError: it is not a message of ours.
    """
    kind, *fields = orjson.loads(payload)
    match kind:
        case "step":
            return StepOutputs([_sequence_output(o) for o in fields[0]], EngineStats(*fields[1]))
        case "add":
            (request,) = fields
            sampling = request["sampling"]
            for name in ("eos_token_ids", "stop_token_ids"):
                sampling[name] = tuple(sampling[name])
            sampling["logit_bias"] = tuple((i, b) for i, b in sampling["logit_bias"])
            return AddRequest(
                **request | {"seq_ids": tuple(request["seq_ids"]), "sampling": SamplingParams(**sampling)}
            )
        case "abort":
            return Abort(tuple(fields[0]))
        case "ping":
            return Ping()
        case "shutdown":
            return Shutdown()
        case "ready":
            return EngineReady(*fields)
        case "failed":
            return EngineFailed(*fields)
        case "progress":
            return LoadProgress(*fields)
    raise ValueError(f"unknown message kind {kind!r}")


def _sequence_output(fields: list[object]) -> SequenceOutput:
    output = SequenceOutput(*fields)  # type: ignore[arg-type]
    if output.logprobs is not None:
        output = output._replace(logprobs=[TokenLogprob(*t) for t in output.logprobs])
    if output.prompt_logprobs is not None:
        output = output._replace(prompt_logprobs=[TokenLogprob(*t) for t in output.prompt_logprobs])
    return output
