"""One rank against several on one machine: engines of each number of ranks take turns at the same work.

`python -m benchmarks.tensor_parallel FOLDER --sizes 1 2` measures tokens a second of so many streams, and the time to
the first token of one prompt. It speaks to the engine processes directly, so that no HTTP is in the figures. On one CPU
all ranks share its cores and memory: what they exchange comes on top and nothing is gained, so there the figures tell
what the exchange costs.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import time
from pathlib import Path

from model.contract.engine_config import EngineConfig
from model.contract.messages import AddRequest, EngineFailed, EngineReady, FromEngine, Shutdown, decode_from_engine
from model.contract.sampling_params import SamplingParams
from model.loop.connection import Connection
from server.run_module import module_command


class EngineOfRanks:
    """An engine process that leads so many ranks."""

    def __init__(self, folder: Path, size: int, arguments: argparse.Namespace) -> None:
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
                tensor_parallel_size=size,
                num_threads=arguments.threads if size == 1 else max(1, arguments.threads // size),
                kv_cache_memory_bytes=(512 << 20) // size,
                enable_prefix_caching=False,
                speculation="off",
                log_level="warning",
            )
        )
        while not isinstance(message := self._connection.receive(), EngineReady):
            if isinstance(message, EngineFailed):
                raise SystemExit(message.message)

    def run(self, num_streams: int, prompt_len: int, num_tokens: int) -> tuple[float, float]:
        """Returns seconds to the first token of the first stream, and tokens a second from all first tokens on."""
        ids = tuple(range(self._next_id, self._next_id + num_streams))
        self._next_id += num_streams
        started = time.perf_counter()
        for seq_id in ids:
            prompt = [33 + (seq_id * 31 + i * 7) % 200 for i in range(prompt_len)]
            sampling = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
            self._connection.send(
                AddRequest(seq_ids=(seq_id,), request_id=str(seq_id), prompt_ids=prompt, sampling=sampling)
            )
        first_s, all_begun, num_later, unbegun, running = 0.0, 0.0, 0, set(ids), set(ids)
        while running:
            message = self._connection.receive()
            now = time.perf_counter()
            for output in getattr(message, "outputs", ()):
                first_s = first_s or now - started
                num_later += 0 if unbegun else len(output.token_ids)
                unbegun.discard(output.seq_id)
                all_begun = all_begun or (0.0 if unbegun else now)
                if output.finish_reason is not None:
                    running.discard(output.seq_id)
        return first_s, num_later / max(1e-9, time.perf_counter() - all_begun)

    def end(self) -> None:
        """Ends the process."""
        self._connection.send(Shutdown())
        self.process.wait()


def main() -> None:
    """Measures in turns and prints medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=2, help="of all ranks together")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--prompt-len", type=int, default=256)
    parser.add_argument("--num-tokens", type=int, default=32)
    arguments = parser.parse_args()
    engines = {size: EngineOfRanks(arguments.folder, size, arguments) for size in arguments.sizes}
    first: dict[int, list[float]] = {size: [] for size in engines}
    rates: dict[tuple[int, int], list[float]] = {(size, n): [] for size in engines for n in arguments.streams}
    for number in range(arguments.rounds + 1):
        for size, engine in engines.items():
            first_s, _ = engine.run(1, arguments.prompt_len, 1)
            if number:  # the first round warms up
                first[size].append(1000 * first_s)
            for num_streams in arguments.streams:
                _, rate = engine.run(num_streams, 16, arguments.num_tokens)
                if number:
                    rates[size, num_streams].append(rate)
    print("| ranks | first token of a prompt of", arguments.prompt_len, "|", end="")
    print("".join(f" {n} streams, tokens/s |" for n in arguments.streams))
    for size in engines:
        print(f"| {size} | {statistics.median(first[size]):.0f} ms |", end="")
        print("".join(f" {statistics.median(rates[size, n]):.1f} |" for n in arguments.streams))
    for engine in engines.values():
        engine.end()


if __name__ == "__main__":
    main()
