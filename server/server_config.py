"""Everything the HTTP process is told at its start; built once by settings, never changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

from server.gates.credentials import Credentials
from server.tls import Tls

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Settings of the HTTP side.

    Attributes:
        model: the checkpoint as given: a folder or a hub id.
        served_names: what a request's `model` may be; replies carry the one asked for.
        accepts_any_name: it may also be any other.
        host: address to listen on.
        port: 0 lets the system choose.
        root_path: the prefix of paths under which a proxy serves this server, or nothing.
        chat_format: "auto" (what the checkpoint says), "chatml" or "raw".
        guard_tool_results: quote what in tools' results looks like a step of the assistant.
        credentials: who may use the API.
        max_body_bytes: the largest request body.
        max_queue_requests: requests that may wait for their first token; more are refused.
        max_queue_tokens: prompt tokens that may wait so.
        max_request_tokens: the most tokens a request may ask for.
        default_max_tokens: of chats that name none; "context" is all that is left, None the checkpoint's.
        truncation: of chats that name none.
        clamp_max_tokens: more tokens than the context has left are cut to what is left, not refused.
        max_requests_per_minute: of one key; None is no limit.
        max_tokens_per_minute: of one key; None is no limit.
        trusted_proxies: whose `X-Forwarded-For` is believed.
        share_prefix_cache: let one key's prompts find what those of another left in the cache.
        send_timeout_s: how long a client may leave its reply unread.
        request_timeout_s: the longest a request may take; None is no limit.
        drain_delay_s: how long /ready says 503 and new requests are still served, after SIGTERM.
        shutdown_timeout_s: how long running requests may take to finish after that.
        engine_start_timeout_s: the longest silence of a loading engine.
        engine_timeout_s: the longest silence of a running engine; None chooses by the device.
        ping_interval_s: between comments that keep an idle stream open; 0 sends none.
        cors_allow_origins: web origins whose pages may call the API.
        allowed_hosts: names the server may be asked for by, beside those of the machine itself.
        log_level: of LOG_LEVELS.
        log_format: "text" or "json".
        log_prompts: write every prompt to the log.
        tls: certificate and key, or None for plain HTTP.
        otel_endpoint: where traces go, or None.
    """

    model: str
    served_names: tuple[str, ...]
    accepts_any_name: bool = False
    host: str = "127.0.0.1"
    port: int = 8000
    root_path: str = ""
    chat_format: str = "auto"
    guard_tool_results: bool = False
    credentials: Credentials = field(default_factory=Credentials)
    max_body_bytes: int = 4 << 20
    max_queue_requests: int = 1024
    max_queue_tokens: int = 1 << 20
    max_request_tokens: int = 1 << 20
    default_max_tokens: int | Literal["context"] | None = None
    truncation: str = "disabled"
    clamp_max_tokens: bool = False
    max_requests_per_minute: int | None = None
    max_tokens_per_minute: int | None = None
    trusted_proxies: tuple[Network, ...] = ()
    share_prefix_cache: bool = False
    send_timeout_s: float = 60.0
    request_timeout_s: float | None = None
    drain_delay_s: float = 7.0
    shutdown_timeout_s: float = 30.0
    engine_start_timeout_s: float = 600.0
    engine_timeout_s: float | None = None
    ping_interval_s: float = 10.0
    cors_allow_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    log_level: str = "info"
    log_format: str = "text"
    log_prompts: bool = False
    tls: Tls | None = None
    otel_endpoint: str | None = None
