"""Plans a benchmark from its arguments: finds the server, fits the workload to it, lists the levels."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import orjson

from tools.bench.arguments import CHAT
from tools.bench.load import Client, Load
from tools.bench.reply import Record, RequestError
from tools.bench.workload import (
    ONE_TO_ONE,
    PATHS,
    WordScale,
    Workload,
    cycled,
    poisson_arrivals,
    read_bodies,
    with_stream,
    words,
)

_WARMUP_TOKENS = 16
_SCALE_WORDS = (16, 64)
_REQUESTS_A_STREAM = 4
_MIN_REQUESTS = 8
_REQUESTS_AT_A_RATE = 64


class BenchmarkError(Exception):
    """Nothing can be measured; the message says why, in one line."""


class Target(NamedTuple):
    """The measured server.

    Attributes:
        model: the name used in requests.
        version: the version that the server reports, or None.
    """

    client: Client
    model: str
    version: str | None


class Plan(NamedTuple):
    """The plan of one level.

    Attributes:
        name: identifies the level, such as {"concurrency": 4}.
        warmup: sent before, without being measured; None for no warm-up.
    """

    name: dict[str, float]
    warmup: Load | None
    load: Load


async def find_target(arguments: argparse.Namespace) -> Target:
    """Finds the model and the version of the server.

    Raises:
        BenchmarkError: the server cannot be reached, or lists no model.
    """
    try:
        client = Client(arguments.base_url, arguments.api_key, arguments.timeout_s)
    except ValueError as error:
        raise BenchmarkError(str(error)) from error
    model, version = arguments.model, None
    try:
        listed = (await client.get(f"{client.prefix}/models")).get("data")
        if model is None and isinstance(listed, list) and listed:
            model = listed[0].get("id")
    except RequestError as error:
        if model is None or error.kind not in ("http 404", "http 405"):  # not every server lists its models
            raise BenchmarkError(f"{arguments.base_url}: {error}") from error
    if model is None:
        raise BenchmarkError(f"{arguments.base_url}: lists no model; name one with --model")
    with contextlib.suppress(RequestError):  # an extension, not OpenAI's
        version = (await client.get(f"{client.prefix.removesuffix('/v1')}/version")).get("version")
    return Target(client, model, version)


async def make_workload(arguments: argparse.Namespace, target: Target) -> Workload:
    """Returns the workload that the arguments describe.

    Raises:
        BenchmarkError: the arguments contradict each other, or the server does not answer.
    """
    if arguments.endpoint == CHAT and arguments.prompt_kind == "ids":
        raise BenchmarkError("--prompt-kind ids needs --endpoint completions: a chat is text")
    kind = "words" if arguments.endpoint == CHAT else arguments.prompt_kind or "ids"
    workload = Workload(
        endpoint=arguments.endpoint,
        model=target.model,
        prompt_tokens=arguments.prompt_tokens,
        max_tokens=arguments.max_tokens,
        shared_prefix_tokens=arguments.shared_prefix_tokens,
        prompt_kind=kind,
        token_ids=arguments.token_ids,
        temperature=arguments.temperature,
        ignore_eos=arguments.ignore_eos,
        stream=arguments.stream,
        extra=arguments.extra_body,
        seed=arguments.seed,
    )
    if kind == "words" and arguments.requests is None:
        return replace(workload, scale=await _find_scale(target, workload))
    return workload


async def _find_scale(target: Target, workload: Workload) -> WordScale:
    """Measures with two short requests how many tokens the server makes of words."""
    points = []
    for num_words in _SCALE_WORDS:
        text = words(num_words)
        prompt = {"messages": [{"role": "user", "content": text}]} if workload.endpoint == CHAT else {"prompt": text}
        body = {"model": target.model, **prompt, **(workload.extra or {}), "max_tokens": 1}
        record = Record(0.0)
        await target.client.send(
            PATHS[workload.endpoint],
            orjson.dumps(with_stream(body, False)),
            record,
            time.perf_counter(),
            stream=False,
        )
        if record.error is not None:
            raise BenchmarkError(f"the first request failed: {record.error}: {record.detail}")
        if not record.prompt_tokens:
            return ONE_TO_ONE
        points.append((num_words, record.prompt_tokens))
    return WordScale.fit(*points)


def plan_levels(arguments: argparse.Namespace, workload: Workload) -> Iterator[Plan]:
    """Yields the levels to run, in order.

    Raises:
        BenchmarkError: the file of requests cannot be used, or there are too few requests.
    """
    from_file = _read_requests(arguments, workload)

    def load(source: Workload, count: int, part: str, **timing: Any) -> Load:
        bodies = cycled(from_file, count) if from_file else list(source.bodies(count, part=part))
        return Load(path=PATHS[workload.endpoint], bodies=bodies, stream=workload.stream, **timing)

    def warmup(concurrency: int) -> Load | None:
        # None by default with a file: its requests would then be found in the prefix cache when they are measured.
        count = arguments.warmup if arguments.warmup is not None else 0 if from_file else concurrency
        if count == 0:
            return None
        short = replace(workload, max_tokens=workload.max_tokens.capped(_WARMUP_TOKENS))
        return load(short, count, "warm-up", concurrency=min(concurrency, count))

    limit_s = arguments.max_duration_s
    for rate in arguments.request_rate or ():
        count = arguments.num_requests or len(from_file) or _REQUESTS_AT_A_RATE
        arrivals = poisson_arrivals(rate, count, arguments.seed)
        measured = load(workload, count, "measured", arrivals=arrivals, max_duration_s=limit_s)
        yield Plan({"request_rate": rate}, warmup(1), measured)
    for streams in () if arguments.request_rate else arguments.concurrency or [1]:
        count = arguments.num_requests or max(
            len(from_file) or max(_REQUESTS_A_STREAM * streams, _MIN_REQUESTS), streams
        )
        if count < streams:
            raise BenchmarkError(f"--num-requests {count} cannot keep {streams} streams busy")
        measured = load(workload, count, "measured", concurrency=streams, max_duration_s=limit_s)
        yield Plan({"concurrency": streams}, warmup(streams), measured)


def _read_requests(arguments: argparse.Namespace, workload: Workload) -> list[bytes]:
    if arguments.requests is None:
        return []
    force = arguments.model is not None
    try:
        return read_bodies(
            arguments.requests, workload.endpoint, workload.model, force_model=force, stream=workload.stream
        )
    except (OSError, ValueError) as error:
        raise BenchmarkError(str(error)) from error
