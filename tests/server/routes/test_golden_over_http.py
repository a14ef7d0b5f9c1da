"""Golden continuations and their log-probabilities, asked for over HTTP: one by one and all at once."""

from __future__ import annotations

import asyncio
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import SMALL
from tests.support.in_process_server import in_process_server
from tests.support.paths import ROOT
from tests.support.server_process import Server, running_server

GOLDEN = ROOT / "tests" / "data" / "golden"


async def ask(http: httpx.AsyncClient, case: dict[str, Any]) -> dict[str, Any]:
    body = {
        "model": "Qwen",
        "prompt": case["prompt"],
        "max_tokens": len(case["greedy"]),
        "temperature": 0,
        "repetition_penalty": 1,
        "ignore_eos": True,
        "return_token_ids": True,
        "logprobs": 1,
    }
    response = await http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return dict(response.json()["choices"][0])


FOLDERS = sorted(path.name for path in GOLDEN.iterdir() if (path / "cases.json").exists())
FLAGS = (*SMALL, "--dtype", "float32", "--max-num-batched-tokens", "32")


@pytest.mark.parametrize("folder", FOLDERS)
async def test_greedy_ids_and_logprobs(folder: str) -> None:
    await check(folder, in_process_server(GOLDEN / folder, *FLAGS))


@pytest.mark.parametrize(
    "folder", ["gptq_int4_asym_desc_act", *(pytest.param(folder, marks=pytest.mark.slow) for folder in FOLDERS)]
)
async def test_the_same_of_two_processes(folder: str, tmp_path: Path) -> None:
    await check(folder, running_server(GOLDEN / folder, tmp_path / "log", *FLAGS))


async def check(folder: str, started: AbstractContextManager[Server]) -> None:
    cases = json.loads((GOLDEN / folder / "cases.json").read_text())["cases"]
    with started as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            alone = [await ask(http, case) for case in cases]
            together = await asyncio.gather(*(ask(http, case) for case in cases))
    for case, *choices in zip(cases, alone, together, strict=True):
        for choice in choices:
            assert choice["token_ids"] == case["greedy"], case["name"]
            assert choice["prompt_token_ids"] == case["prompt"]
            assert choice["logprobs"]["token_logprobs"] == pytest.approx(case["greedy_logprobs"], abs=1e-4)
