"""`qwen-server check-config`: the settings as they would be used, each with its source; secrets are not shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.contract.files.model_config import read_model_config
from server.config.sources import trace_settings
from server.hubs.resolve import folder_here
from server.settings import Settings, shown
from server.telemetry.tracing import require_tracing


def check_config(flags: Mapping[str, Any], environ: Mapping[str, str], config_file: str | None) -> str:
    """Reads settings as `serve` does and tests what can be tested without weights: keys, certificate, the folder.

    Args:
        flags: only those given.
        environ: of the process.
        config_file: of `--config`.

    Returns:
        A line for each setting: name, value, source.

    Raises:
        ConfigError: they cannot be used; one line.
    """
    settings, origins = trace_settings(flags, environ, config_file)
    credentials = settings.credentials()
    settings.tls()
    if settings.otel_endpoint is not None:
        require_tracing()
    folder = folder_here(settings.model, settings.revision)
    if folder is not None:
        read_model_config(folder)
    values = {name: shown(name, getattr(settings, name)) for name in Settings.model_fields}
    width = max(map(len, values))
    longest = max(map(len, values.values()))
    lines = [f"{name:<{width}}  {value:<{longest}}  {origins.get(name, 'default')}" for name, value in values.items()]
    guards = [f"{len(credentials.key_digests)} keys"] if credentials.key_digests else []
    guards += ["one user with a password"] if credentials.basic_digest is not None else []
    notes = [
        f"the checkpoint    {f'is {folder}' if folder else 'is not here: it is fetched from a hub at the start'}",
        f"callers need      {' or '.join(guards) or 'nothing: anyone who reaches the port is let in'}",
        f"requests may name {', '.join(settings.served_names)}",
    ]
    return "\n".join([*lines, "", *notes])
