"""The single list of settings.

Each field is the flag `--its-name`, the variable `QWEN_SERVER_ITS_NAME` and the key `its_name` of a configuration file.
The HTTP side reads the object itself; those that the engine needs stand in `EngineConfig` too, mostly under that name.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Literal, get_origin

from pydantic import BaseModel, ConfigDict, Field

from model.contract.engine_config import EngineConfig
from model.contract.errors import ConfigError
from server.config.files import read_key_file
from server.config.types import (
    ANY_NAME,
    Adapters,
    CacheDtype,
    Dtype,
    Keys,
    Networks,
    Size,
    Texts,
    TokensOrContext,
    Windows,
)
from server.gates.credentials import Credentials
from server.hubs.demo import DEMO
from server.hubs.download import Hub
from server.hubs.resolve import served_names
from server.tls import Tls, tls_from_files

ENV_PREFIX = "QWEN_SERVER_"
SECRETS = ("api_key", "api_auth", "ssl_keyfile_password")
_DEFAULT_MAX_LORAS = 8
_MEMORY_STORE_BYTES = 256 << 20
_FILE_STORE_BYTES = 16 << 30


class Settings(BaseModel):
    """All settings, validated."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    model: str = Field(
        DEMO, min_length=1, description="the checkpoint: a folder, or a hub id as Qwen/Qwen-7B-Chat (default: a demo)"
    )
    hub: Hub = Field("huggingface", description="where a hub id is looked up (modelscope needs the extra modelscope)")
    revision: str | None = Field(
        None, min_length=1, description="branch, tag or commit of a hub id (default: its main branch)"
    )
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on; localhost is IPv4 and IPv6")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 lets the system choose")
    root_path: str = Field(
        "", pattern=r"^((/[\w.~-]+)+)?$", description="path prefix under which a proxy serves it, such as /qwen"
    )
    served_model_name: Texts = Field((), description="name requests may use for the model (repeatable); * is any name")
    dtype: Dtype = Field("auto", description="of weights and activations")
    quantization: Literal["none", "int8", "int4", "nf4"] = Field(
        "none", description="pack the blocks' weights while they are loaded; for checkpoints that are not quantised yet"
    )
    lm_head_dtype: Literal["auto", "int8"] = Field(
        "auto", description="of the output layer; int8 halves what a step reads of it, and rounds the published weights"
    )
    kv_cache_dtype: CacheDtype = Field(
        "auto", description="of cached keys and values; auto is that of the activations, int8 fits nearly twice as many"
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|(cuda|xpu)(:\d+)?)$",
        description="auto, cpu, cuda or cuda:N; untested: xpu, xpu:N, mps, and cuda on ROCm",
    )
    tensor_parallel_size: int = Field(
        1, ge=1, le=64, description="devices (on a CPU: processes) that share the model, each with a part of each layer"
    )
    pipeline_parallel_size: int = Field(
        1, ge=1, le=64, description="devices (on a CPU: processes) that the layers are dealt out to; needs no fast link"
    )
    kernels: Literal["auto", "torch", "triton"] = Field(
        "auto",
        description="auto has torch's operations do what a kernel of ours cannot; torch uses no others,"
        " triton refuses to start where one fails",
    )
    batch_invariant: bool = Field(
        False,
        description="a reply never depends on what else is served: always so on a CPU, on a GPU at the price of speed",
    )
    max_model_len: int | None = Field(
        None, ge=2, description="most tokens of prompt and reply together (default: from the checkpoint)"
    )
    attention_window: Windows = Field(
        None,
        description="how many of the last tokens attention reads: N, or one a layer as 512,1024,...; 0 is all of them"
        " (default: the checkpoint's window_attn)",
    )
    max_num_seqs: int = Field(256, ge=1, description="most sequences in one step")
    max_running_per_key: int | None = Field(
        None, ge=1, description="most of them of one key, or of one address where there are no keys (default: no limit)"
    )
    allow_priority: bool = Field(False, description="let priority count between keys, not only among a key's own")
    max_num_batched_tokens: int | None = Field(
        None, ge=1, description="most tokens in one step (default: 512 on a CPU, 4096 on a GPU)"
    )
    max_step_ms: int | None = Field(
        None,
        ge=0,
        description="how long a step may take that computes prompts while other requests wait for tokens; 0 is any time"
        " (default: 400 on a CPU, 0 on a GPU)",
    )
    speculation: Literal["auto", "off"] = Field(
        "auto", description="guess tokens ahead and check several in a step; replies are the same (auto: on a CPU)"
    )
    block_size: int = Field(16, ge=1, le=1024, description="tokens in a block of the KV cache")
    kv_cache_memory: Size | None = Field(
        None, description="of the KV cache, such as 512MiB or 2GB (default: what is free)"
    )
    gpu_memory_utilization: float = Field(0.90, gt=0, le=1, description="share of a GPU's memory to use")
    no_cuda_graphs: bool = Field(False, description="do not record steps on a GPU (starts faster, runs slower)")
    no_run_ahead: bool = Field(False, description="on a GPU, wait for each step's tokens before starting the next")
    no_prefix_caching: bool = Field(False, description="do not reuse the cache of equal prompt starts")
    share_prefix_cache: bool = Field(
        False, description="let keys reuse each other's cache: faster, but tells one what others sent"
    )
    lora: Adapters = Field(
        (), description="serve a LoRA adapter as NAME=PATH, a folder or hub id (repeatable); requests name it as model"
    )
    max_loras: int | None = Field(
        None, ge=1, description="most adapters loaded at a time (default: those of --lora; 8 with --allow-lora-updates)"
    )
    max_lora_rank: int = Field(64, ge=1, le=4096, description="largest rank of an adapter")
    allow_lora_updates: bool = Field(False, description="let requests load and unload adapters while the server runs")
    lora_root: Path | None = Field(
        None, description="folder that such requests may load from, and from nowhere else (default: any folder)"
    )
    threads: int | None = Field(
        None, ge=1, description="CPU threads for tensor work (default: all cores; 1 for small models)"
    )
    seed: int | None = Field(None, ge=0, lt=1 << 63, description="of the random streams of requests without a seed")
    chat_format: Literal["auto", "chatml", "raw"] = Field(
        "auto", description="auto takes the checkpoint's; chatml also lets a base model chat"
    )
    guard_tool_results: bool = Field(
        False, description="quote what in tools' results looks like a step of the assistant (`> Final Answer:`)"
    )
    api_key: Keys = Field((), description="key that lets a caller in (repeatable; better in a file)")
    api_key_file: Path | None = Field(
        None, description="file with one key a line, for its owner's eyes only; `KEY weight=2` has twice the part"
    )
    api_auth: str | None = Field(None, pattern=r"(?s)^[^:]+:.+$", description="user:password for HTTP Basic")
    max_body_bytes: Size = Field(4 << 20, description="largest request body")
    max_queue_requests: int = Field(1024, ge=1, description="requests that may wait for a first token; more get 429")
    max_queue_tokens: int = Field(
        1 << 20, ge=1, description="prompt tokens that may wait for a first token; more get 429"
    )
    max_request_tokens: int = Field(
        1 << 20, ge=1, description="most tokens of a request: its prompts, and what it asks for in all its choices"
    )
    default_max_tokens: TokensOrContext | None = Field(
        None,
        description="of chats that name no limit; context is all that is left of it (default: the checkpoint's"
        " max_new_tokens, or context)",
    )
    truncation: Literal["disabled", "auto"] = Field(
        "disabled", description="of chats that name none: auto drops whole oldest turns that do not fit the context"
    )
    clamp_max_tokens: bool = Field(False, description="cut a max_tokens that does not fit the context, not refuse it")
    max_requests_per_minute: int | None = Field(None, ge=1, description="of one key (default: no limit)")
    max_tokens_per_minute: int | None = Field(
        None, ge=1, description="of one key, prompts and replies together (default: no limit)"
    )
    trusted_proxy: Networks = Field(
        (), description="address or network of a proxy whose X-Forwarded-For is believed (repeatable)"
    )
    request_timeout_s: float | None = Field(None, gt=0, description="longest time for a request (default: no limit)")
    send_timeout_s: float = Field(60.0, gt=0, description="how long a client may leave its reply unread")
    drain_delay_s: float = Field(
        7.0, ge=0, description="after SIGTERM, how long new requests are served while /ready says 503; Ctrl-C: 0"
    )
    shutdown_timeout_s: float = Field(30.0, ge=0, description="time for running requests to finish after that")
    engine_start_timeout_s: float = Field(600.0, gt=0, description="longest silence of a loading engine")
    engine_timeout_s: float | None = Field(
        None, gt=0, description="longest silence of a running engine, until it is restarted (default: 60, on a CPU 600)"
    )
    ping_interval_s: float = Field(10.0, ge=0, description="between comments on idle streams; 0 sends none")
    cors_allow_origin: Texts = Field((), description="web origin whose pages may call the API, * for all (repeatable)")
    allowed_host: Texts = Field(
        (), description="name in a request's Host, * for any (repeatable; default: on a loopback --host its names only)"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe line logged")
    log_format: Literal["text", "json"] = Field("text", description="of log lines")
    log_prompts: bool = Field(False, description="write every prompt to the log, as the model sees it")
    ssl_certfile: Path | None = Field(None, description="certificate chain (PEM); the server then speaks HTTPS")
    ssl_keyfile: Path | None = Field(None, description="its private key (default: in the same file)")
    ssl_keyfile_password: str | None = Field(None, description="of the private key (better in the environment)")
    otel_endpoint: str | None = Field(
        None, pattern=r"^https?://", description="send traces to this OTLP/HTTP collector (needs the extra otel)"
    )
    store: Path | None = Field(
        None,
        description="SQLite file for files, batches and stored responses (default: in memory, until the server ends)",
    )
    max_store_bytes: Size | None = Field(
        None,
        description="most that is stored, of which one key may fill half (default: 256MiB in memory, 16GiB in a file)",
    )

    @cached_property
    def served_names(self) -> tuple[str, ...]:
        """Names that a request's `model` may have; replies to requests that name none carry the first."""
        return served_names(self.model, tuple(name for name in self.served_model_name if name != ANY_NAME))

    @property
    def adapters(self) -> dict[str, str]:
        """Folder or hub id of each adapter to be served from the start, by name."""
        return {name: source.strip() for name, _, source in (adapter.partition("=") for adapter in self.lora)}

    @property
    def max_adapters(self) -> int:
        """How many adapters may be loaded at a time.

        Raises:
            ConfigError: `--lora` names more than `--max-loras`.
        """
        if self.max_loras is None:
            return max(len(self.lora), _DEFAULT_MAX_LORAS if self.allow_lora_updates else 0)
        if len(self.lora) > self.max_loras:
            raise ConfigError(f"--lora names {len(self.lora)} adapters, but --max-loras is {self.max_loras}")
        return self.max_loras

    @property
    def store_bytes(self) -> int:
        """Most bytes that are stored."""
        return self.max_store_bytes or (_MEMORY_STORE_BYTES if self.store is None else _FILE_STORE_BYTES)

    @property
    def accepts_any_name(self) -> bool:
        """Whether a request's `model` may be any name."""
        return ANY_NAME in self.served_model_name

    def engine_config(self, checkpoint: Path) -> EngineConfig:
        """Returns the settings of the engine process, which loads the folder `checkpoint`."""
        alike = type(self).model_fields.keys() & EngineConfig.__struct_fields__
        return EngineConfig(
            checkpoint_path=str(checkpoint),
            max_running_per_caller=self.max_running_per_key,
            kv_cache_memory_bytes=self.kv_cache_memory,
            cuda_graphs=not self.no_cuda_graphs,
            run_ahead=False if self.no_run_ahead else None,
            enable_prefix_caching=not self.no_prefix_caching,
            num_threads=self.threads,
            max_adapters=self.max_adapters,
            max_adapter_rank=self.max_lora_rank,
            **{name: getattr(self, name) for name in alike},
        )

    def credentials(self) -> Credentials:
        """Returns who may use the API.

        Raises:
            ConfigError: the key file cannot be read or is empty.
        """
        keys = (*self.api_key, *(() if self.api_key_file is None else read_key_file(self.api_key_file)))
        return Credentials.from_secrets(keys, self.api_auth)

    def tls(self) -> Tls | None:
        """Returns certificate and key, or None for plain HTTP.

        Raises:
            ConfigError: they cannot be used.
        """
        return tls_from_files(self.ssl_certfile, self.ssl_keyfile, self.ssl_keyfile_password)

    def without_secrets(self) -> Settings:
        """Returns a copy to keep while the server runs, which needs only hashes of keys (`Credentials`)."""
        return self.model_copy(update={name: type(self).model_fields[name].default for name in SECRETS})


def flag_name(field: str) -> str:
    """Returns the flag of a setting."""
    return "--" + field.replace("_", "-")


def is_repeatable(field: str) -> bool:
    """Whether the flag of a setting may be given several times."""
    return get_origin(Settings.model_fields[field].annotation) is tuple


def variable_name(field: str) -> str:
    """Returns the environment variable of a setting."""
    return ENV_PREFIX + field.upper()


def shown(name: str, value: object) -> str:
    """Returns a setting's value as it may be printed and logged."""
    if name in SECRETS and value:
        return f"({len(value)} hidden)" if isinstance(value, tuple) else "(hidden)"
    if name == "otel_endpoint" and value:  # its user and query may hold a password or a key
        return re.sub(r"(?s)\?.*", "?***", re.sub(r"(?s)^(\w+://)?.*@", r"\1***@", str(value)))
    if value is None or value == ():
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
