"""How long a batch takes, next to the time that the engine alone takes for the same prompts.

`python -m benchmarks.batches [MODEL] --num-lines 10000` steps the engine in a process of its own, with all prompts in
its queue and no server around it; then has a server, with `--store`, do them as a batch: from the creation to
`completed`. In turns, medians of the ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from benchmarks.soak.server import soak_server
from server.conversion.converter import Converter
from server.conversion.defaults import GenerationDefaults
from server.conversion.neutral_request import ChatRequest, ReplyOptions
from server.conversion.prompt_encoding import PromptEncoder
from server.engine.client import Prompt
from server.grammars.check import GrammarChecker
from server.hubs.demo import DEMO
from server.hubs.resolve import resolve_checkpoint
from server.run_module import module_command
from server.version import server_version

MAX_TOKENS = 32
_POLL_S = 0.05
_TIMEOUT_S = 600.0


def question(number: int) -> str:
    """Returns the n-th question; each is another prompt."""
    return f"What is {number} plus {number % 97}?"


async def prompts_of(converter: Converter, ready: Any, num_lines: int) -> list[Prompt]:
    """Returns what the server would make of the lines."""
    from prompts.messages import Message

    options = ReplyOptions(max_tokens=MAX_TOKENS, temperature=0.0)
    requests = [ChatRequest(messages=[Message("user", question(n))], options=options) for n in range(num_lines)]
    return [(await converter.chat(request, ready)).prompts[0] for request in requests]


def time_engine(model: str, num_lines: int, flags: Sequence[str]) -> float:
    """Returns the seconds of the engine alone: run in a process of its own."""
    from model.contract.messages import AddRequest
    from model.contract.tokenizer import Tokenizer
    from model.loop.engine import Engine
    from server.__main__ import build_parser
    from server.settings import Settings

    words = {k: v for k, v in vars(build_parser().parse_args(["serve", model, *flags])).items() if k != "command"}
    checkpoint = resolve_checkpoint(model)
    engine = Engine(Settings.model_validate(words).engine_config(checkpoint))
    tokenizer = Tokenizer.from_folder(checkpoint)
    defaults = GenerationDefaults.from_folder(checkpoint)
    converter = Converter(PromptEncoder(tokenizer, defaults), GrammarChecker(tokenizer))
    prompts = asyncio.run(prompts_of(converter, engine.ready, num_lines))
    started = time.perf_counter()
    for number, prompt in enumerate(prompts):
        engine.add_request(
            AddRequest(seq_ids=(number,), request_id="bench", prompt_ids=prompt.ids, sampling=prompt.sampling)
        )
    while engine.has_work():
        engine.step()
    return time.perf_counter() - started


def time_batch(url: str, num_lines: int) -> float:
    """Returns the seconds from a batch's creation to its end."""
    lines = [
        {
            "custom_id": str(n),
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "messages": [{"role": "user", "content": question(n)}],
                "max_tokens": MAX_TOKENS,
                "temperature": 0,
            },
        }
        for n in range(num_lines)
    ]
    with httpx.Client(base_url=f"{url}/v1", timeout=60, trust_env=False) as http:
        text = "\n".join(map(json.dumps, lines)).encode()
        file = http.post("/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", text)}).json()
        body = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        started = time.perf_counter()
        batch = http.post("/batches", json=body).json()
        while batch["status"] not in ("completed", "failed"):
            time.sleep(_POLL_S)
            batch = http.get(f"/batches/{batch['id']}").json()
        taken_s = time.perf_counter() - started
        if batch["request_counts"] != {"total": num_lines, "completed": num_lines, "failed": 0}:
            raise RuntimeError(f"the batch went wrong: {batch}")
    return taken_s


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=DEMO)
    parser.add_argument("--num-lines", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engine-alone", action="store_true", help=argparse.SUPPRESS)
    arguments, flags = parser.parse_known_args()
    if arguments.engine_alone:
        print(time_engine(arguments.model, arguments.num_lines, flags))
        return
    print(f"{server_version()}, {os.cpu_count()} cores, {arguments.num_lines} lines of at most {MAX_TOKENS} tokens")
    ratios = []
    for _ in range(arguments.repeats):
        alone = [arguments.model, "--num-lines", str(arguments.num_lines), "--engine-alone", *flags]
        done = subprocess.run(
            module_command("benchmarks.batches", *alone), stdout=subprocess.PIPE, text=True, check=True,
            timeout=_TIMEOUT_S,
        )  # fmt: skip
        engine_s = float(done.stdout.splitlines()[-1])
        with tempfile.TemporaryDirectory() as name:
            store = ("--store", str(Path(name) / "store.db"))
            with soak_server(arguments.model, Path(name) / "log", *store, *flags) as server:
                batch_s = time_batch(server.url.geturl(), arguments.num_lines)
        ratios.append(batch_s / engine_s)
        print(f"engine alone {engine_s:.1f} s, batch {batch_s:.1f} s, ratio {ratios[-1]:.2f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
