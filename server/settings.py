"""The one reader of flags, environment and configuration file; a flag beats a variable beats the file.

The fields below are the single list of settings: each is the flag `--its-name`, the variable
`QWEN_SERVER_ITS_NAME` and the key `its_name` of the file. The result is two frozen dataclasses.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from model.contract.engine_config import EngineConfig
from model.contract.errors import ConfigError
from server.config_file import read_config_file, read_key_file
from server.demo import DEMO
from server.gates.credentials import Credentials
from server.hub import served_names
from server.hub_download import Hub
from server.server_config import Network, ServerConfig
from server.sizes import parse_size
from server.tls import tls_from_files
from server.tracing import require_tracing

ENV_PREFIX = "QWEN_SERVER_"
CONFIG_VARIABLE = "QWEN_SERVER_CONFIG"
_SERVICE_LINK = re.compile(r"QWEN_SERVER_(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT_\d+_.*)")
ANY_NAME = "*"
SECRETS = ("api_key", "api_auth", "ssl_keyfile_password")
# What is given for these may be a secret by mistake.
_SECRET_FILES = ("api_key_file", "ssl_keyfile")
_LOG_FORMAT_KEYS = ("log_format", "log-format")
# Of pydantic, where text was expected.
_WRONG_KINDS = frozenset({"string_type", "tuple_type", "path_type"})

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
CacheDtype = Literal["auto", "bfloat16", "float16", "float32", "int8"]
Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]


def _one_or_more(value: object) -> object:
    """A variable or a file may hold a single value, or none; in a variable commas separate several."""
    if value is None:
        return ()
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _no_blank(keys: tuple[str, ...]) -> tuple[str, ...]:
    """Whoever gives a key means the server to be closed: a variable that was never filled must not open it."""
    keys = tuple(key.strip() for key in keys)
    if not keys or not all(keys):
        raise ValueError("is given, but holds no key; leave it out to let everybody in")
    return keys


def _tokens_or_context(value: object) -> object:
    if value == "context" or value is None:
        return value
    if isinstance(value, bool) or not str(value).isdecimal() or not int(str(value)):
        raise ValueError("should be a number of tokens, or context")
    return int(str(value))


TokensOrContext = Annotated[int | Literal["context"], BeforeValidator(_tokens_or_context)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_one_or_more)]
Keys = Annotated[Texts, AfterValidator(_no_blank)]
Networks = Annotated[tuple[Network, ...], BeforeValidator(_one_or_more)]


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
    kv_cache_dtype: CacheDtype = Field(
        "auto", description="of cached keys and values; auto is that of the activations, int8 fits nearly twice as many"
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|(cuda|xpu)(:\d+)?)$",
        description="auto, cpu, cuda or cuda:N; untested: xpu, xpu:N, mps, and cuda on ROCm",
    )
    kernels: Literal["auto", "torch", "triton"] = Field(
        "auto",
        description="auto has torch's operations do what a kernel of ours cannot; torch uses no others,"
        " triton refuses to start where one fails",
    )
    max_model_len: int | None = Field(
        None, ge=2, description="most tokens of prompt and reply together (default: from the checkpoint)"
    )
    max_num_seqs: int = Field(256, ge=1, description="most sequences in one step")
    max_running_per_key: int | None = Field(
        None, ge=1, description="most of them of one key, or of one address where there are no keys (default: no limit)"
    )
    allow_priority: bool = Field(False, description="let priority count between keys, not only among a key's own")
    max_num_batched_tokens: int | None = Field(
        None, ge=1, description="most tokens in one step (default: 512 on a CPU, 4096 on a GPU)"
    )
    block_size: int = Field(16, ge=1, le=1024, description="tokens in a block of the KV cache")
    kv_cache_memory: Size | None = Field(
        None, description="of the KV cache, such as 512MiB or 2GB (default: what is free)"
    )
    gpu_memory_utilization: float = Field(0.90, gt=0, le=1, description="share of a GPU's memory to use")
    no_cuda_graphs: bool = Field(False, description="do not record decode steps on a GPU (starts faster, runs slower)")
    no_run_ahead: bool = Field(False, description="on a GPU, wait for each step's tokens before starting the next")
    no_prefix_caching: bool = Field(False, description="do not reuse the cache of equal prompt starts")
    share_prefix_cache: bool = Field(
        False, description="let keys reuse each other's cache: faster, but tells one what others sent"
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

    def engine_config(self, checkpoint: Path) -> EngineConfig:
        """Returns what the engine process is told.

        Args:
            checkpoint: the folder `model` stands for.
        """
        return EngineConfig(
            checkpoint_path=str(checkpoint),
            device=self.device,
            kernels=self.kernels,
            dtype=self.dtype,
            kv_cache_dtype=self.kv_cache_dtype,
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            max_running_per_caller=self.max_running_per_key,
            allow_priority=self.allow_priority,
            max_num_batched_tokens=self.max_num_batched_tokens,
            block_size=self.block_size,
            kv_cache_memory_bytes=self.kv_cache_memory,
            gpu_memory_utilization=self.gpu_memory_utilization,
            cuda_graphs=not self.no_cuda_graphs,
            run_ahead=False if self.no_run_ahead else None,
            enable_prefix_caching=not self.no_prefix_caching,
            num_threads=self.threads,
            seed=self.seed,
            log_level=self.log_level,
            log_format=self.log_format,
        )

    def server_config(self) -> ServerConfig:
        """Returns what the HTTP side is told.

        Raises:
            ConfigError: the key file cannot be read or is empty, or certificate or traces cannot be used.
        """
        keys = (*self.api_key, *(() if self.api_key_file is None else read_key_file(self.api_key_file)))
        if self.otel_endpoint is not None:
            require_tracing()
        return ServerConfig(
            model=self.model,
            served_names=served_names(self.model, tuple(name for name in self.served_model_name if name != ANY_NAME)),
            accepts_any_name=ANY_NAME in self.served_model_name,
            host=self.host,
            port=self.port,
            root_path=self.root_path,
            chat_format=self.chat_format,
            guard_tool_results=self.guard_tool_results,
            credentials=Credentials.from_secrets(keys, self.api_auth),
            max_body_bytes=self.max_body_bytes,
            max_queue_requests=self.max_queue_requests,
            max_queue_tokens=self.max_queue_tokens,
            max_request_tokens=self.max_request_tokens,
            default_max_tokens=self.default_max_tokens,
            truncation=self.truncation,
            clamp_max_tokens=self.clamp_max_tokens,
            max_requests_per_minute=self.max_requests_per_minute,
            max_tokens_per_minute=self.max_tokens_per_minute,
            trusted_proxies=self.trusted_proxy,
            share_prefix_cache=self.share_prefix_cache,
            send_timeout_s=self.send_timeout_s,
            request_timeout_s=self.request_timeout_s,
            drain_delay_s=self.drain_delay_s,
            shutdown_timeout_s=self.shutdown_timeout_s,
            engine_start_timeout_s=self.engine_start_timeout_s,
            engine_timeout_s=self.engine_timeout_s,
            ping_interval_s=self.ping_interval_s,
            cors_allow_origins=self.cors_allow_origin,
            allowed_hosts=self.allowed_host,
            log_level=self.log_level,
            log_format=self.log_format,
            log_prompts=self.log_prompts,
            tls=tls_from_files(self.ssl_certfile, self.ssl_keyfile, self.ssl_keyfile_password),
            otel_endpoint=self.otel_endpoint,
        )

    def without_secrets(self) -> Settings:
        """A copy to keep while the server runs, when what lets callers in is known by its hashes."""
        return self.model_copy(update={name: type(self).model_fields[name].default for name in SECRETS})


def load_settings(flags: Mapping[str, Any], environ: Mapping[str, str], config_file: str | None = None) -> Settings:
    """Merges the sources and validates the result.

    Args:
        flags: only those given, by field name.
        environ: the process environment.
        config_file: of `--config`; the variable QWEN_SERVER_CONFIG stands in for it.

    Raises:
        ConfigError: an unknown key, a bad value or a missing one, naming where it came from.
    """
    return trace_settings(flags, environ, config_file)[0]


def trace_settings(
    flags: Mapping[str, Any], environ: Mapping[str, str], config_file: str | None = None
) -> tuple[Settings, dict[str, str]]:
    """Like `load_settings`; also tells where each setting that is not a default came from.

    Args:
        flags: as for `load_settings`.
        environ: as for `load_settings`.
        config_file: as for `load_settings`.

    Raises:
        ConfigError: as `load_settings`.
    """
    known = Settings.model_fields.keys()
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    path = config_file or environ.get(CONFIG_VARIABLE)
    if path:
        for key, value in read_config_file(Path(path)).items():
            name = _known(key.replace("-", "_"), known, f"{path}: unknown setting {key!r}", str)
            merged[name], origins[name] = value, f"{path}: {key}"
    for variable, text in environ.items():
        if variable.startswith(ENV_PREFIX) and variable != CONFIG_VARIABLE and not _is_service_link(variable, text):
            name = _known(
                variable.removeprefix(ENV_PREFIX).lower(), known, f"unknown variable {variable}", variable_name
            )
            merged[name], origins[name] = text, variable
    for name, value in flags.items():
        merged[name], origins[name] = value, "MODEL" if name == "model" else flag_name(name)
    try:
        return Settings.model_validate(merged), origins
    except ValidationError as error:
        raise ConfigError(_explain(error, origins)) from error


def wished_log_format(flags: Mapping[str, Any], environ: Mapping[str, str], config_file: str | None = None) -> object:
    """Returns what `log_format` is set to, also where settings are wrong: for the line that says so.

    Args:
        flags: as for `load_settings`.
        environ: as for `load_settings`.
        config_file: as for `load_settings`.
    """
    path = config_file or environ.get(CONFIG_VARIABLE)
    file: Mapping[str, Any] = {}
    if path:
        with contextlib.suppress(ConfigError):
            file = read_config_file(Path(path))
    wishes = (flags.get("log_format"), environ.get(variable_name("log_format")), *map(file.get, _LOG_FORMAT_KEYS))
    return next(filter(None, wishes), None)


def _is_service_link(variable: str, text: str) -> bool:
    """Whether Kubernetes set the variable, for pods beside a service called qwen-server."""
    if _SERVICE_LINK.fullmatch(variable):
        return True
    return variable == variable_name("port") and "://" in text


def flag_name(field: str) -> str:
    """Returns the flag of a setting."""
    return "--" + field.replace("_", "-")


def is_repeatable(field: str) -> bool:
    """Whether the flag of a setting may be given several times."""
    annotation = Settings.model_fields[field].annotation
    return get_origin(annotation) is tuple


def variable_name(field: str) -> str:
    """Returns the environment variable of a setting."""
    return ENV_PREFIX + field.upper()


def _known(name: str, known: Iterable[str], complaint: str, show: Any) -> str:
    if name in known:
        return name
    near = difflib.get_close_matches(name, list(known), n=1)
    raise ConfigError(complaint + (f"; did you mean {show(near[0])}?" if near else ""))


def shown(name: str, value: object) -> str:
    """Returns a setting's value as it may be printed and logged."""
    if name in SECRETS and value:
        return f"({len(value)} hidden)" if isinstance(value, tuple) else "(hidden)"
    if name == "otel_endpoint" and value:  # the user, and what is asked for, may be what lets in
        return re.sub(r"(?s)\?.*", "?***", re.sub(r"(?s)^(\w+://)?.*@", r"\1***@", str(value)))
    if value is None or value == ():
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _explain(error: ValidationError, origins: Mapping[str, str]) -> str:
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        return str(first["msg"]).removeprefix("Value error, ")
    name = str(first["loc"][0])
    message = str(first["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if first["type"] in _WRONG_KINDS:  # as of a file: all that variables and flags hold is text
        message = "must be text; put it in quotes, for the file's syntax makes a number, a date or the like of it"
    if name not in (*SECRETS, *_SECRET_FILES):
        value = first["input"]
        message += f", not {(shown(name, value) if isinstance(value, str) else value)!r}"
    return f"{origins.get(name, name)}: {message}"
