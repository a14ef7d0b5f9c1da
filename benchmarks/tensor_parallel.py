"""One rank against several on one machine: engines of each number of ranks take turns at the same work.

`python -m benchmarks.tensor_parallel FOLDER --sizes 1 2 --stages 2` measures tokens a second of so many streams, and
the time to the first token of one prompt, with each layer split over so many ranks, and with layers dealt out to so
many stages. It speaks to the engine processes directly, so that no HTTP is in the figures. On one CPU all ranks share
its cores and memory: what they exchange comes on top and nothing is gained, so there the figures tell what the exchange
costs. The processor time that each rank takes for a token hardly depends on what else the machine does: where steps
overlap on stages, the rank that takes most bounds what they reach together.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.engine_requests import greedy_request
from model.contract.engine_config import EngineConfig
from model.contract.messages import EngineFailed, EngineReady, FromEngine, Shutdown, decode_from_engine
from model.loop.connection import Connection
from server.run_module import module_command

_NUM_PROMPTS = 8


class Shape(NamedTuple):
    """How a model is split: each layer over `size` ranks, layers over `num_stages`."""

    size: int
    num_stages: int

    @property
    def num_ranks(self) -> int:
        """Of both."""
        return self.size * self.num_stages


class Run(NamedTuple):
    """What came of some streams.

    Attributes:
        first_s: seconds to the first token of the first one.
        all_s: seconds to the end of all.
        tokens_s: tokens a second from all first tokens on.
        processor_ms: CPU time of each rank per token of that time, the leader's first; per prompt token if only
            prompts are computed.
    """

    first_s: float
    all_s: float
    tokens_s: float
    processor_ms: list[float]


class EngineOfRanks:
    """An engine process that leads the ranks of a shape."""

    def __init__(self, folder: Path, shape: Shape, arguments: argparse.Namespace) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = module_command("model.loop.process", "--fd", str(theirs.fileno()))
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        self._connection: Connection[FromEngine] = Connection(ours, decode_from_engine)
        self._next_id = 0
        self._connection.send(
            EngineConfig(
                checkpoint_path=str(folder),
                device=arguments.device,
                dtype=arguments.dtype,
                tensor_parallel_size=shape.size,
                pipeline_parallel_size=shape.num_stages,
                num_threads=max(1, arguments.threads // shape.num_ranks),
                kv_cache_memory_bytes=(512 << 20) // shape.num_ranks,
                enable_prefix_caching=False,
                speculation="off",
                log_level="warning",
            )
        )
        while not isinstance(message := self._connection.receive(), EngineReady):
            if isinstance(message, EngineFailed):
                raise SystemExit(message.message)

    def _processor_s(self) -> list[float]:
        """Processor time of each rank so far, the leader's first."""
        leader = self.process.pid
        children = Path(f"/proc/{leader}/task/{leader}/children").read_text().split()
        fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in (leader, *children)]
        return [(int(each[11]) + int(each[12])) / os.sysconf("SC_CLK_TCK") for each in fields]

    def run(self, num_streams: int, prompt_len: int, num_tokens: int) -> Run:
        """Runs so many streams side by side."""
        ids = tuple(range(self._next_id, self._next_id + num_streams))
        self._next_id += num_streams
        started = time.perf_counter()
        for seq_id in ids:
            prompt = [33 + (seq_id * 31 + i * 7) % 200 for i in range(prompt_len)]
            self._connection.send(greedy_request(seq_id, prompt, num_tokens))
        first_s, all_begun, num_later, unbegun, running = 0.0, 0.0, 0, set(ids), set(ids)
        before = self._processor_s()
        while running:
            message = self._connection.receive()
            now = time.perf_counter()
            for output in getattr(message, "outputs", ()):
                first_s = first_s or now - started
                num_later += 0 if unbegun else len(output.token_ids)
                unbegun.discard(output.seq_id)
                if not (all_begun or unbegun):
                    all_begun, before = now, self._processor_s() if num_tokens > 1 else before
                if output.finish_reason is not None:
                    running.discard(output.seq_id)
        spent = [1000 * (late - early) for early, late in zip(before, self._processor_s(), strict=True)]
        ended = time.perf_counter()
        tokens_s = num_later / max(1e-9, ended - all_begun)
        num_counted = num_later if num_tokens > 1 else num_streams * prompt_len
        return Run(first_s, ended - started, tokens_s, [each / max(1, num_counted) for each in spent])

    def end(self) -> None:
        """Ends the process."""
        self._connection.send(Shutdown())
        self.process.wait()


def main() -> None:
    """Measures in turns and prints medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2], help="ranks that share each layer")
    parser.add_argument("--stages", type=int, nargs="*", default=[2], help="ranks that layers are dealt out to")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=2, help="of all ranks together")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--prompt-len", type=int, default=256)
    parser.add_argument("--num-tokens", type=int, default=32)
    arguments = parser.parse_args()
    shapes = [*(Shape(size, 1) for size in arguments.sizes), *(Shape(1, number) for number in arguments.stages)]
    engines = {shape: EngineOfRanks(arguments.folder, shape, arguments) for shape in shapes}
    first: dict[Shape, list[float]] = {shape: [] for shape in shapes}
    prompts: dict[Shape, list[Run]] = {shape: [] for shape in shapes}
    runs: dict[tuple[Shape, int], list[Run]] = {(shape, n): [] for shape in shapes for n in arguments.streams}
    for number in range(arguments.rounds + 1):
        for shape, engine in engines.items():
            prompt = engine.run(1, arguments.prompt_len, 1)
            several = engine.run(_NUM_PROMPTS, arguments.prompt_len, 1)
            if number:  # the first round warms up
                first[shape].append(1000 * prompt.first_s)
                prompts[shape].append(several)
            for num_streams in arguments.streams:
                run = engine.run(num_streams, 16, arguments.num_tokens)
                if number:
                    runs[shape, num_streams].append(run)
    head = f"first token of a prompt of {arguments.prompt_len} | {_NUM_PROMPTS} of them, tokens/s"
    print(f"| ranks x stages | {head} | processor ms a token |", end="")
    print("".join(f" {n} streams, tokens/s | processor ms a token |" for n in arguments.streams))
    for shape in shapes:
        print(f"| {shape.size} x {shape.num_stages} | {statistics.median(first[shape]):.0f} ms |", end="")
        rate = _NUM_PROMPTS * arguments.prompt_len / statistics.median(run.all_s for run in prompts[shape])
        print(f" {rate:.0f} | {_by_rank(prompts[shape])} |", end="")
        for num_streams in arguments.streams:
            some = runs[shape, num_streams]
            print(f" {statistics.median(run.tokens_s for run in some):.1f} | {_by_rank(some)} |", end="")
        print()
    for engine in engines.values():
        engine.end()


def _by_rank(runs: list[Run]) -> str:
    """Medians of the processor times of each rank."""
    ranks = zip(*(run.processor_ms for run in runs), strict=True)
    return " + ".join(f"{statistics.median(times):.2f}" for times in ranks)


if __name__ == "__main__":
    main()
