"""`qwen-server eval`: evaluates a server on a suite and prints a table."""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import sys
import time
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from model.contract.errors import StartupError
from tools.api_address import open_client, parse_address
from tools.evaluation import plugin, report, scores
from tools.evaluation.asking import Answer, Asker, ask_all, choose_model
from tools.evaluation.suite import ChatCase, ToolCase, load_suite
from tools.output_file import check_writable

_TIMEOUT_S = 600.0

CaseT = TypeVar("CaseT")


def evaluate(arguments: argparse.Namespace) -> int:
    """Runs the evaluation and prints it.

    Returns:
        The exit status: 1 if a request failed.

    Raises:
        StartupError: suite or server cannot be used.
    """
    if arguments.json is not None:
        check_writable(arguments.json)
    path: Path = arguments.suite
    if arguments.kind == "tools":
        tool_cases = _some(load_suite(path, ToolCase), arguments.limit)
        answers, model = asyncio.run(_ask(tool_cases, arguments))
        answers = [
            plugin.read_reply(answer) if case.is_rendered else answer
            for case, answer in zip(tool_cases, answers, strict=True)
        ]
        result = report.build(tool_cases, answers, scores.score_tool, scores.summarise_tools)
    else:
        chat_cases = _some(load_suite(path, ChatCase), arguments.limit)
        answers, model = asyncio.run(_ask(chat_cases, arguments))
        result = report.build(chat_cases, answers, scores.score_chat, scores.summarise_chat)
    print(f"{path.name} on {model}" + (f" (mode {arguments.mode})" if getattr(arguments, "mode", None) else ""))
    print(report.table(result))
    if arguments.json is not None:
        about = {"suite": str(path), "model": model, "mode": getattr(arguments, "mode", None), "time": int(time.time())}
        report.write({**about, **result}, arguments.json)
    return _tell_failures(answers)


def _prompt_of(case: ToolCase | ChatCase) -> tuple[Any, ...]:
    """Returns the arguments of `Asker.ask` for a case: messages, tools, stop."""
    if isinstance(case, ToolCase):
        return (case.messages, None, plugin.STOP) if case.is_rendered else (case.messages, case.tools)
    return (case.messages,)


def _some(cases: list[CaseT], limit: int | None) -> list[CaseT]:
    """Picks `limit` cases, spread over the whole suite, which is ordered by category."""
    if limit is None or limit >= len(cases):
        return cases
    return [cases[number * len(cases) // limit] for number in range(limit)]


async def _ask(cases: list[ToolCase] | list[ChatCase], arguments: argparse.Namespace) -> tuple[list[Answer], str]:
    key = arguments.api_key or os.environ.get("OPENAI_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        url = parse_address(arguments.base_url)
        root = url._replace(path=(url.path.rstrip("/") or "/v1") + "/", query="", fragment="")
        client = open_client(url, base_url=root.geturl(), headers=headers, timeout=_TIMEOUT_S)
    except ValueError as error:
        raise StartupError(f"--base-url or --api-key cannot be used: {error}") from error
    async with client:
        model = arguments.model or await choose_model(client)
        asker = Asker(client, model, getattr(arguments, "mode", "tools"), arguments.max_tokens)
        asks = [functools.partial(asker.ask, *_prompt_of(case)) for case in cases]
        with tqdm(total=len(cases), desc="asking", unit="case", disable=not sys.stderr.isatty()) as bar:
            return await ask_all(asks, arguments.concurrency, bar.update), model


def _tell_failures(answers: list[Answer]) -> int:
    errors = [answer.error for answer in answers if answer.error is not None]
    if not errors:
        return 0
    print(f"{len(errors)} of {len(answers)} requests failed; the first: {errors[0]}", file=sys.stderr)
    return 1
