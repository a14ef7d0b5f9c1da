"""Decode and prefill speed of the engine on this machine, next to what limits it and to a peer, in one run.

`python -m benchmarks.decode --shape 1.8b` makes a random checkpoint of that shape (kept in benchmarks/.cache), steps
the engine in this process (no HTTP) and prints, for each batch size, tokens a second, the share of the time that
reading the weights once must take, and transformers' generate on the same weights (mapped to its Qwen2 class).
`--llama-python PATH` adds llama.cpp through a Python that has llama-cpp-python and gguf (see benchmarks/llama_peer.py);
with `--same-file` the engine serves the very GGUF file that llama.cpp made and reads.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import transformers_peer
from demo import random_checkpoint
from model.contract.engine_config import EngineConfig
from model.contract.gguf.file import is_gguf, read_gguf
from model.contract.gguf.tensor_names import EMBEDDING, kept_bytes
from model.contract.messages import AddRequest
from model.contract.sampling_params import SamplingParams
from model.loop.engine import Engine
from server.run_module import module_command
from server.version import server_version

CACHE = Path(__file__).parent / ".cache"
_PREFILL_LEN = 512


def memory_bandwidth(num_bytes: int = 1 << 30, repeats: int = 5) -> float:
    """Bytes a second that this machine reads from memory: the best of several sums over a large array."""
    data = torch.ones(num_bytes // 4)
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        data.sum()
        best = min(best, time.perf_counter() - started)
    return num_bytes / best


def measure_decode(engine: Engine, batch_size: int, prompt_len: int, num_tokens: int, next_id: int) -> float:
    """Seconds a decode step takes with `batch_size` sequences: the median, prefill left out."""
    generator = random.Random(batch_size)
    vocab_size = engine.ready.vocab_size
    for i in range(batch_size):
        prompt = [generator.randrange(vocab_size) for _ in range(prompt_len)]
        sampling = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
        engine.add_request(AddRequest(seq_ids=(next_id + i,), request_id="bench", prompt_ids=prompt, sampling=sampling))
    steps = []
    while engine.has_work():
        started = time.perf_counter()
        outputs = engine.step().outputs
        elapsed = time.perf_counter() - started
        if len(outputs) == batch_size:
            steps.append(elapsed)
    if len(steps) < 3:
        raise SystemExit(f"{batch_size} sequences of {prompt_len + num_tokens} tokens do not run together")
    return statistics.median(steps[1:-1])  # the first still holds a prefill, the last frees


def measure_prefill(engine: Engine, prompt_len: int, next_id: int) -> float:
    """Prompt tokens a second, one prompt."""
    generator = random.Random(0)
    prompt = [generator.randrange(engine.ready.vocab_size) for _ in range(prompt_len)]
    sampling = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    engine.add_request(AddRequest(seq_ids=(next_id,), request_id="bench", prompt_ids=prompt, sampling=sampling))
    started = time.perf_counter()
    while engine.has_work():
        engine.step()
    return prompt_len / (time.perf_counter() - started)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures everything and returns the figures."""
    checkpoint = folder = random_folder(arguments.shape)
    bandwidth = memory_bandwidth()
    llama = llama_peer(arguments) if arguments.llama_python else None
    if arguments.same_file:
        if llama is None:
            raise SystemExit("--same-file needs --llama-python, which makes the file")
        llama(1)  # the file is there once it has answered
        checkpoint = folder / f"model-{arguments.llama_quantization}.gguf"
    engine = Engine(
        EngineConfig(
            checkpoint_path=str(checkpoint),
            dtype=arguments.dtype,
            lm_head_dtype=arguments.lm_head_dtype,
            kv_cache_dtype=arguments.kv_cache_dtype,
            enable_prefix_caching=False,
            speculation="off",  # random tokens give nothing to guess by
            max_step_ms=0,  # all prompts first: the steps that decode all of them are what is measured
            max_model_len=max(_PREFILL_LEN, arguments.prompt_len + arguments.num_tokens) + 1,
            max_num_batched_tokens=max(_PREFILL_LEN, *arguments.batch_sizes),
        )
    )
    read_bytes = engine.ready.weights_bytes - embedding_bytes(checkpoint)
    next_ids = itertools.count(1, 1000)
    length = (arguments.prompt_len, arguments.num_tokens)
    sources: dict[str, Callable[[int], float]] = {
        "engine": lambda size: size / measure_decode(engine, size, *length, next(next_ids))
    }
    if llama is not None:
        sources["llama.cpp"] = llama
    if arguments.transformers:
        peer = transformers_peer.load_as_qwen2(folder)
        sources["transformers"] = lambda size: transformers_peer.measure(peer, size, *length)
    rates: dict[str, dict[int, list[float]]] = {name: {size: [] for size in arguments.batch_sizes} for name in sources}
    for number in range(arguments.rounds):
        # Other work on the machine comes and goes: what is compared is measured in turns, close together.
        for size in arguments.batch_sizes:
            for name, measure in sources.items():
                rates[name][size].append(measure(size))
            latest = {name: round(rates[name][size][-1], 2) for name in sources}
            print(f"round {number}, batch {size}, tokens/s: {latest}", flush=True)
    prefill = measure_prefill(engine, _PREFILL_LEN, next(next_ids))
    rows = []
    for size in arguments.batch_sizes:
        medians = {name: statistics.median(rates[name][size]) for name in sources}
        rate = medians.pop("engine")
        row: dict[str, float] = {
            "batch_size": size,
            "ms_per_step": size / rate * 1e3,
            "tokens_per_s": rate,
            "share_of_limit": read_bytes / bandwidth * rate / size,
        }
        for name, other in medians.items():
            row[f"{name}_tokens_per_s"], row[f"ratio_to_{name}"] = other, rate / other
        rows.append(row)
    return {
        "shape": arguments.shape,
        "dtype": arguments.dtype,
        "checkpoint": checkpoint.name,
        "lm_head_dtype": arguments.lm_head_dtype,
        "kv_cache_dtype": arguments.kv_cache_dtype,
        "prompt_len": arguments.prompt_len,
        "commit": server_version().commit,
        "torch": torch.__version__,
        "processor": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "memory_gb_per_s": bandwidth / 1e9,
        "decode": rows,
        "prefill_tokens_per_s": prefill,
        "rounds": rates,
    }


def random_folder(shape: str) -> Path:
    """The random checkpoint of a shape, made if it is not there."""
    folder = CACHE / f"random-{shape}"
    if not (folder / "model.safetensors").exists():
        random_checkpoint.write(folder, random_checkpoint.SHAPES[shape])
    return folder


def llama_peer(arguments: argparse.Namespace) -> Callable[[int], float]:
    """Starts llama.cpp in a process of its own; returns what asks it for the speed at a batch size.

    It quantises in its own way, from the unquantised checkpoint of the same shape.
    """
    peer = LlamaPeer(arguments)
    length = {"prompt_len": arguments.prompt_len, "num_tokens": arguments.num_tokens}
    return lambda batch_size: peer.ask(do="batch", batch_size=batch_size, **length)


class LlamaPeer:
    """llama.cpp in a process of its own, with the weights loaded; see benchmarks/llama_peer.py.

    Args:
        arguments: `shape`, `llama_python`, `llama_quantization`, and `kv_cache_dtype`.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        folder = random_folder(arguments.shape.partition("-")[0])
        command = module_command("benchmarks.llama_peer", str(folder), python=arguments.llama_python)
        command += ["--quantization", arguments.llama_quantization]
        if arguments.kv_cache_dtype == "int8":
            command += ["--kv", "q8_0"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **request: Any) -> float:
        """Has it do something, and returns the figure that it tells."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):
                return float(json.loads(line)["figure"])
        raise SystemExit("the llama.cpp process has ended")


def embedding_bytes(folder: Path) -> int:
    """Bytes of the embedding table: a step reads a few rows of it, not all."""
    if is_gguf(folder):
        packed_bytes, num_plain = kept_bytes({EMBEDDING: read_gguf(folder).tensors[EMBEDDING]})
        return packed_bytes + 2 * num_plain
    config = json.loads((folder / "config.json").read_text())
    width = 4 if config["fp32"] else 2
    return int(config["vocab_size"] * config["hidden_size"] * width)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Decode speed against the memory's limit and against peers.")
    parser.add_argument("--shape", choices=sorted(random_checkpoint.SHAPES), default="1.8b")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--lm-head-dtype", choices=["auto", "int8"], default="auto")
    parser.add_argument("--kv-cache-dtype", choices=["auto", "int8"], default="auto", help="the peer's is q8_0 then")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--prompt-len", type=int, default=64)
    parser.add_argument("--num-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=1, help="measure so often, in turns; medians are reported")
    parser.add_argument("--transformers", action="store_true", help="measure transformers too")
    parser.add_argument("--llama-python", help="a Python with llama-cpp-python and gguf: measure llama.cpp too")
    parser.add_argument("--llama-quantization", choices=["bf16", "q4_0", "q8_0"], default="bf16")
    parser.add_argument("--same-file", action="store_true", help="serve the GGUF file that llama.cpp reads")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    figures = run(arguments)
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
