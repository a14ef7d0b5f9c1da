"""The engine without a server: a checkpoint run directly, and a driver of the loop that checks as it steps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from model.architectures import make_model
from model.backends.torch_backend import TorchBackend
from model.contract.engine_config import EngineConfig
from model.contract.files.model_config import read_model_config
from model.contract.messages import AdapterLoaded, AddRequest, EngineStats, TokenLogprob
from model.contract.sampling_params import SamplingParams
from model.execution.checkpoint import load_weights
from model.execution.forward_batch import ForwardBatch, SequenceSpan
from model.execution.kv_cache import allocate_kv_cache, kv_cache_block_bytes
from model.loop.engine import Engine
from model.quantization import linear_maker
from model.scheduling.sequence import Sequence
from tests.support.scheduling_integrity import check_blocks, check_scheduler


class LoadedModel:
    """A checkpoint on the CPU, run directly: no scheduler, no sampler."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32, *, quantization: str = "none") -> None:
        self.config = read_model_config(folder)
        self.backend = TorchBackend(torch.device("cpu"))
        self.dtype = dtype
        make_linear = linear_maker(self.config, self.backend, dtype, quantization)
        self.model = make_model(self.config, make_linear, self.backend, dtype)
        with torch.inference_mode():
            self.num_bytes = load_weights(self.model, folder, self.backend.device)

    def logits(self, token_ids: list[int], num_prompt_tokens: int | None = None) -> torch.Tensor:
        """[T, vocab_size] float32, all positions in one chunk; alpha is that of the prompt."""
        config = self.config
        num_blocks = -(-len(token_ids) // 16)
        cache = allocate_kv_cache(
            config, num_blocks=num_blocks, block_size=16, dtype=self.dtype, device=self.backend.device
        )
        alpha = config.rope_alpha(num_prompt_tokens or len(token_ids))
        span = SequenceSpan(token_ids, 0, alpha, list(range(num_blocks)), len(token_ids))
        batch = ForwardBatch.build([span], config, 16, self.backend.device)
        with torch.inference_mode():
            logits = self.model.logits(self.model(batch, cache))
        return logits.clone()


@dataclass
class Reply:
    """All that came back for one sequence."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] | None = None
    num_cached_tokens: int | None = None
    finish_reason: str | None = None
    stop_token_id: int | None = None
    error: str | None = None


class Driver:
    """Steps an engine and keeps what it reports, checking after each step that the loop is consistent.

    Args:
        engine: as made by `make_driver`.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.held: list[Sequence] = []
        self.replies: dict[int, Reply] = {}
        self.stats = EngineStats()
        self.news: list[AdapterLoaded] = []

    def add(self, requests: Iterable[AddRequest]) -> None:
        for request in requests:
            self.engine.add_request(request)
            self.replies |= {seq_id: Reply() for seq_id in request.seq_ids}

    def step(self) -> None:
        if self.engine.waiting_s() is not None:
            time.sleep(0.001)  # as the process does
        self.news += self.engine.take_adapter_news()
        step = self.engine.step()
        self.stats = step.stats
        if self.stats.num_steps_total % 4 == 0 or not self.engine.has_work():
            self.check_integrity()
        for output in step.outputs:
            reply = self.replies[output.seq_id]
            assert reply.finish_reason is None, "an output after the last one"
            is_first = reply.num_cached_tokens is None
            if output.finish_reason not in ("error", "abort", "invalid"):
                assert (output.num_cached_tokens is not None) == is_first
                assert (output.queue_time_s is not None) == is_first
                reply.num_cached_tokens = output.num_cached_tokens if is_first else reply.num_cached_tokens
            if output.prompt_logprobs is not None:
                assert is_first
                reply.prompt_logprobs = output.prompt_logprobs
            reply.token_ids += output.token_ids
            if output.logprobs is not None:
                assert len(output.logprobs) == len(output.token_ids)
                reply.logprobs += output.logprobs
            assert not any(math.isnan(entry.logprob) for entry in reply.logprobs)
            reply.finish_reason = output.finish_reason
            reply.stop_token_id = output.stop_token_id
            reply.error = output.error

    def finish(self) -> dict[int, Reply]:
        """Steps until there is no work; returns the replies of all that were added since the last call."""
        while self.engine.has_work():
            self.step()
        assert self.stats.num_running == self.stats.num_waiting == 0
        assert self.stats.num_free_blocks == self.stats.num_blocks - len(self.held), "blocks leaked"
        self.assert_forgotten()
        replies, self.replies = self.replies, {}
        return replies

    def check_integrity(self) -> None:
        if self.held:
            scheduler = self.engine._scheduler
            check_blocks(scheduler.block_manager, [*scheduler.residents.sequences.values(), *self.held])
        else:
            check_scheduler(self.engine._scheduler)

    @contextmanager
    def fragmented(self) -> Iterator[None]:
        """Takes every other block away, so that no two blocks of a sequence lie next to each other."""
        blocks = self.engine._scheduler.block_manager
        sampling = SamplingParams(max_tokens=1)
        sequences = [Sequence(-1 - i, "held", [0], sampling) for i in range(blocks.num_blocks)]
        assert all(blocks.allocate(seq, 1) for seq in sequences)
        for seq in sequences:
            if seq.block_table[0] % 2:
                blocks.free(seq)
            else:
                self.held.append(seq)
        yield
        for seq in self.held:
            blocks.free(seq)
        self.held = []

    def run(self, requests: Iterable[AddRequest]) -> dict[int, Reply]:
        self.add(requests)
        return self.finish()

    def assert_forgotten(self) -> None:
        """Nothing is kept of sequences that are gone: what stays a step would stay for ever."""
        engine, history = self.engine, self.engine._runner._sampler._history
        assert not len(engine._outputs)
        assert not engine._adapter_of_seq
        assert engine._speculator is None or not engine._speculator._drafters
        assert not engine._refused
        assert not engine._scheduler.residents.sequences
        assert not engine._scheduler.residents._followers
        assert not list(engine._scheduler.residents.callers)
        assert not history._slots
        assert len(history._free) == engine._runner.worker.limits.max_num_seqs


def make_driver(folder: Path, num_blocks: int = 256, block_size: int = 16, **changes: Any) -> Driver:
    """Makes an engine on one CPU thread.

    Args:
        folder: of the checkpoint.
        num_blocks: KV cache blocks.
        block_size: tokens in one.
        changes: further fields of `EngineConfig`.
    """
    name = changes.get("dtype", "float32")
    dtype = torch.float32 if name == "auto" else getattr(torch, name)
    block_bytes = kv_cache_block_bytes(read_model_config(folder), block_size, dtype)
    settings: dict[str, Any] = {"device": "cpu", "dtype": "float32", "num_threads": 1, "seed": 0}
    settings |= {"kv_cache_memory_bytes": num_blocks * block_bytes, **changes}
    return Driver(Engine(EngineConfig(checkpoint_path=str(folder), block_size=block_size, **settings)))


def stepwise_logits(
    model: LoadedModel, ids: list[int], kv_dtype: torch.dtype, num_prompt_tokens: int = 48
) -> torch.Tensor:
    """Logits of the positions after the prompt: [T - num_prompt_tokens, vocab_size].

    All goes token by token, the prompt too, so that every key is read as it is kept.
    """
    num_blocks = -(-len(ids) // 16)
    cache = allocate_kv_cache(
        model.config, num_blocks=num_blocks, block_size=16, dtype=kv_dtype, device=torch.device("cpu")
    )
    alpha = model.config.rope_alpha(num_prompt_tokens)
    rows = []
    for start in range(len(ids)):
        span = SequenceSpan([ids[start]], start, alpha, list(range(num_blocks)), 1)
        batch = ForwardBatch.build([span], model.config, 16, torch.device("cpu"))
        with torch.inference_mode():
            rows.append(model.model.logits(model.model(batch, cache)[-1:]))
    return torch.cat(rows[num_prompt_tokens:])
