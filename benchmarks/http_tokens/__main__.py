"""CPU time that the HTTP process spends on a streamed token.

`python -m benchmarks.http_tokens --streams 64` runs the server in this process in front of an engine without a model
(token_fountain: one token a step for each stream), and a client in another process that reads chats as a stream. It
prints the process's CPU time over the tokens, with nothing but the server in it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import cProfile
import json
import os
import pstats
import socket
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.figures import circumstances, print_figures
from demo import random_checkpoint
from model.contract.engine_config import EngineConfig
from model.contract.tokenizer import Tokenizer
from server.conversion.defaults import GenerationDefaults
from server.engine.client import EngineClient
from server.engine.supervisor import EngineState
from server.run_module import module_command
from server.serve import draining_server
from server.settings import Settings


async def read_streams(port: int, num_streams: int, num_tokens: int) -> None:
    """The client: reads chats to their ends."""
    body = {"messages": [{"role": "user", "content": "Go on."}], "max_tokens": num_tokens, "stream": True}
    payload = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(payload)}\r\n"
    head += "Content-Type: application/json\r\nConnection: close\r\n\r\n"

    async def one() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + payload)
        num_events = 0
        while data := await reader.read(1 << 16):
            num_events += data.count(b"\ndata: ") + data.startswith(b"data: ")
        writer.close()
        return num_events

    num_events = await asyncio.gather(*(one() for _ in range(num_streams)))
    print(sum(num_events))


async def measure(arguments: argparse.Namespace, checkpoint: Path) -> list[float]:
    """Returns microseconds a token, one figure a round."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    engine = EngineClient(EngineConfig(checkpoint_path=str(checkpoint)), module="benchmarks.http_tokens.token_fountain")
    server = draining_server(
        Settings(model="m", chat_format="chatml", log_level="warning"),
        Tokenizer.from_folder(checkpoint),
        GenerationDefaults.from_folder(checkpoint),
        engine,
    )
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    task = asyncio.create_task(server.serve([listener]))
    while engine.state is not EngineState.READY or not server.started:
        await asyncio.sleep(0.05)
    figures = []
    profile = cProfile.Profile() if arguments.profile else None
    for number in range(arguments.rounds + 1):
        command = [*module_command("benchmarks.http_tokens"), "--client", str(port)]
        command += ["--streams", str(arguments.streams), "--tokens", str(arguments.tokens)]
        client = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        if profile is not None and number:
            profile.enable()
        before = os.times()
        told, _ = await client.communicate()
        after = os.times()
        kernel_s = after.system - before.system
        spent_s = after.user - before.user + kernel_s
        if profile is not None:
            profile.disable()
        if number:  # the first warms up
            num_tokens = arguments.streams * arguments.tokens
            figures.append(spent_s / num_tokens * 1e6)
            # Below 1 the process came too late, and wrote what had come meanwhile together.
            share = (int(told) - 3 * arguments.streams) / num_tokens
            kernel = f"{kernel_s / num_tokens * 1e6:.1f} in the kernel"
            print(f"round {number}: {figures[-1]:.1f} us a token, {kernel}, {share:.2f} events a token", flush=True)
    server.should_exit = True
    await task
    if profile is not None:
        pstats.Stats(profile).sort_stats("tottime").print_stats(40)
    return figures


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures and returns the figures."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        random_checkpoint.write(checkpoint, random_checkpoint.Shape(num_layers=1, hidden_size=64, intermediate_size=64))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as uvicorn runs the server
            figures = runner.run(measure(arguments, checkpoint))
    return {
        **circumstances(),
        "python": sys.version.split()[0],
        "streams": arguments.streams,
        "tokens": arguments.tokens,
        "us_per_token": statistics.median(figures),
        "rounds": figures,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="CPU time of the HTTP process for a streamed token.")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=512, help="of each stream")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="print where the time goes (it then takes longer)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--client", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client is not None:
        asyncio.run(read_streams(arguments.client, arguments.streams, arguments.tokens))
        return
    print_figures(run(arguments), arguments.json)


if __name__ == "__main__":
    main()
