"""Everything the engine process is told at its start; built once by server/settings, never changed.

It is the first message to the engine process.
"""

from __future__ import annotations

import msgspec


class LoadAdapter(msgspec.Struct, frozen=True, array_like=True, tag="load_adapter"):
    """Load a LoRA adapter beside what runs, and answer with `AdapterLoaded`.

    Attributes:
        adapter_id: above 0, never reused while the server lives; requests name the adapter by it.
        path: a local folder.
        replaces: the adapter whose place it takes (and which is unloaded next), so that it needs no room of its own;
            0 for none.
    """

    adapter_id: int
    path: str
    replaces: int = 0


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="config"):
    """Settings of the engine.

    Attributes:
        checkpoint_path: a local folder (hub ids are resolved before).
        device: "auto", "cpu", "mps", "cuda[:N]" or "xpu[:N]".
        tensor_parallel_size: ranks that share each layer, each in a process and on a device of its own (all on the
            same CPU). `kv_cache_memory_bytes` and `num_threads` count for each rank.
        pipeline_parallel_size: stages that the layers are dealt out to, each of `tensor_parallel_size` ranks.
        kernels: "auto", "torch" or "triton", see `make_backend`.
        dtype: "auto", "bfloat16", "float16" or "float32".
        batch_invariant: whether a row's result must not depend on what else is in a step, at the price of speed.
        lm_head_dtype: "auto" keeps the output layer as the checkpoint has it; "int8" packs it while it is loaded.
        quantization: "none", or how to pack the blocks' weights while they are loaded: "int8", "int4" or "nf4".
        kv_cache_dtype: "auto" (that of the activations), one of the dtypes, or "int8".
        attention_window: how many of the last positions layers read: one number, or one a layer, 0 for all; None leaves
            it to the checkpoint.
        max_model_len: prompt and reply together; None derives it from the checkpoint.
        max_num_seqs: the most sequences in one step.
        max_running_per_caller: the most sequences of one caller in a step; None is no limit.
        allow_priority: let a request's priority count between callers, not only among those of its caller.
        max_num_batched_tokens: the most tokens in one step (prefill chunks and decodes together);
            None chooses by device (512 on a CPU, 4096 on a GPU).
        max_step_ms: how long a step should take that carries decodes beside prompts; 0 is any time,
            None chooses by device (250 on a CPU, any time on a GPU).
        speculation: "auto" guesses tokens ahead where steps do not overlap, "off" never.
        block_size: tokens in a KV cache block.
        kv_cache_memory_bytes: None takes what is free (`gpu_memory_utilization` on a GPU).
        gpu_memory_utilization: share of a GPU's memory that weights, activations and cache may take.
        cuda_graphs: record decode steps on a GPU and replay them.
        run_ahead: launch a step before the tokens of the step before it are here; None leaves it to the backend.
        enable_prefix_caching: reuse the KV blocks of equal prompt starts.
        num_threads: CPU threads for tensor work; None lets torch choose.
        adapters: LoRA adapters to load before the first request; their folders are local.
        max_adapters: the most adapters loaded at a time; 0 leaves no room for any.
        max_adapter_rank: the largest rank of their factors.
        allow_lora_updates: adapters may come and go while the engine runs, so keep a slot to replace one in use.
        adapters_may_fail: go on without an adapter that cannot be loaded: it was served before this engine.
        log_level: least severe log line written.
        log_format: "text" or "json" lines.
        seed: starts the random streams of requests without one; None takes it from the operating system.
    """

    checkpoint_path: str
    device: str = "auto"
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    kernels: str = "auto"
    batch_invariant: bool = False
    dtype: str = "auto"
    quantization: str = "none"
    lm_head_dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    attention_window: tuple[int, ...] | None = None
    max_model_len: int | None = None
    max_num_seqs: int = 256
    max_running_per_caller: int | None = None
    allow_priority: bool = False
    max_num_batched_tokens: int | None = None
    max_step_ms: int | None = None
    speculation: str = "auto"
    block_size: int = 16
    kv_cache_memory_bytes: int | None = None
    gpu_memory_utilization: float = 0.90
    cuda_graphs: bool = True
    run_ahead: bool | None = None
    enable_prefix_caching: bool = True
    num_threads: int | None = None
    seed: int | None = None
    adapters: tuple[LoadAdapter, ...] = ()
    max_adapters: int = 0
    max_adapter_rank: int = 64
    allow_lora_updates: bool = False
    adapters_may_fail: bool = False
    log_level: str = "info"
    log_format: str = "text"
