"""From arguments to what is sent: finds the server, makes the workload fit it, lays out the levels."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

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
    """Why there is nothing to measure, in one line."""


class Target(NamedTuple):
    """The server measured.

    Attributes:
        client: connected to it.
        model: asked for.
        version: as it says, or None.
    """

    client: Client
    model: str
    version: str | None


class Plan(NamedTuple):
    """One level.

    Attributes:
        name: what tells it from the others.
        warmup: what to send before, or None.
        load: what is measured.
    """

    name: dict[str, float]
    warmup: Load | None
    load: Load


async def find_target(arguments: argparse.Namespace) -> Target:
    """Finds out what the server is and whether it can be reached.

    Raises:
        BenchmarkError: it cannot, or serves nothing.
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
        if model is None or error.kind not in ("http 404", "http 405"):  # not everybody lists its models
            raise BenchmarkError(f"{arguments.base_url}: {error}") from error
    if model is None:
        raise BenchmarkError(f"{arguments.base_url}: lists no model; name one with --model")
    with contextlib.suppress(RequestError):  # an extension, not OpenAI's
        version = (await client.get(f"{client.root}/version")).get("version")
    return Target(client, model, version)


async def make_workload(arguments: argparse.Namespace, target: Target) -> Workload:
    """Returns the workload that the arguments describe.

    Raises:
        BenchmarkError: the server does not answer, or nobody could send that.
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
    """Measures how the server's tokenizer and template turn words into tokens, with two short requests."""
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
        BenchmarkError: the file of requests is no such thing, or there are too few.
    """
    from_file: list[bytes] = []
    if arguments.requests is not None:
        force = arguments.model is not None
        try:
            from_file = read_bodies(
                arguments.requests, workload.endpoint, workload.model, force_model=force, stream=workload.stream
            )
        except (OSError, ValueError) as error:
            raise BenchmarkError(str(error)) from error
    if arguments.request_rate:
        for rate in arguments.request_rate:
            yield _plan_rate(arguments, workload, from_file, rate)
    else:
        for concurrency in arguments.concurrency or [1]:
            yield _plan_concurrency(arguments, workload, from_file, concurrency)


def _plan_concurrency(arguments: argparse.Namespace, workload: Workload, from_file: list[bytes], number: int) -> Plan:
    count = arguments.num_requests or max(len(from_file) or max(_REQUESTS_A_STREAM * number, _MIN_REQUESTS), number)
    if count < number:
        raise BenchmarkError(f"--num-requests {count} cannot keep {number} streams busy")
    load = Load(
        path=PATHS[workload.endpoint],
        bodies=_bodies(workload, from_file, count),
        stream=workload.stream,
        concurrency=number,
        max_duration_s=arguments.max_duration_s,
    )
    return Plan({"concurrency": number}, _warmup(arguments, workload, from_file, number), load)


def _plan_rate(arguments: argparse.Namespace, workload: Workload, from_file: list[bytes], rate: float) -> Plan:
    count = arguments.num_requests or len(from_file) or _REQUESTS_AT_A_RATE
    load = Load(
        path=PATHS[workload.endpoint],
        bodies=_bodies(workload, from_file, count),
        stream=workload.stream,
        arrivals=poisson_arrivals(rate, count, arguments.seed),
        max_duration_s=arguments.max_duration_s,
    )
    return Plan({"request_rate": rate}, _warmup(arguments, workload, from_file, 1), load)


def _bodies(workload: Workload, from_file: list[bytes], count: int) -> list[bytes]:
    return cycled(from_file, count) if from_file else list(workload.bodies(count, part="measured"))


def _warmup(arguments: argparse.Namespace, workload: Workload, from_file: list[bytes], number: int) -> Load | None:
    # Those of a file would find themselves in the prefix cache when they are measured.
    count = arguments.warmup if arguments.warmup is not None else 0 if from_file else number
    if count == 0:
        return None
    short = replace(workload, max_tokens=workload.max_tokens.capped(_WARMUP_TOKENS))
    return Load(
        path=PATHS[workload.endpoint],
        bodies=cycled(from_file, count) if from_file else list(short.bodies(count, part="warm-up")),
        stream=workload.stream,
        concurrency=min(number, count),
    )
