"""Reads settings from flags, environment and configuration file; a flag beats a variable beats the file."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model.contract.errors import ConfigError
from server.config.files import read_config_file
from server.settings import ENV_PREFIX, SECRETS, Settings, flag_name, shown, variable_name

CONFIG_VARIABLE = "QWEN_SERVER_CONFIG"
_SERVICE_LINK = re.compile(r"QWEN_SERVER_(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT_\d+_.*)")
# Their values may be secrets, given by mistake.
_SECRET_FILES = ("api_key_file", "ssl_keyfile")
_LOG_FORMAT_KEYS = ("log_format", "log-format")
# pydantic's error types where text was expected.
_WRONG_KINDS = frozenset({"string_type", "tuple_type", "path_type"})


def load_settings(flags: Mapping[str, Any], environ: Mapping[str, str], config_file: str | None = None) -> Settings:
    """Merges the sources and validates the result.

    Args:
        flags: flags given on the command line, by field name.
        environ: the process environment.
        config_file: argument of `--config`; by default the variable QWEN_SERVER_CONFIG names the file.

    Raises:
        ConfigError: a key is unknown, or a value is bad or missing; the message names its source.
    """
    return trace_settings(flags, environ, config_file)[0]


def trace_settings(
    flags: Mapping[str, Any], environ: Mapping[str, str], config_file: str | None = None
) -> tuple[Settings, dict[str, str]]:
    """Like `load_settings`; also returns the source of each setting that is not a default."""
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
        _known(name, known, f"unknown setting {name!r}", str)
        merged[name], origins[name] = value, "MODEL" if name == "model" else flag_name(name)
    try:
        return Settings.model_validate(merged), origins
    except ValidationError as error:
        raise ConfigError(_explain(error, origins)) from error


def requested_log_format(
    flags: Mapping[str, Any], environ: Mapping[str, str], config_file: str | None = None
) -> object:
    """Returns the value given for `log_format`, for the line that says which other setting is wrong."""
    path = config_file or environ.get(CONFIG_VARIABLE)
    file: Mapping[str, Any] = {}
    if path:
        with contextlib.suppress(ConfigError):
            file = read_config_file(Path(path))
    candidates = (flags.get("log_format"), environ.get(variable_name("log_format")), *map(file.get, _LOG_FORMAT_KEYS))
    return next(filter(None, candidates), None)


def _is_service_link(variable: str, text: str) -> bool:
    """Whether Kubernetes set the variable, for pods beside a service called qwen-server."""
    if _SERVICE_LINK.fullmatch(variable):
        return True
    return variable == variable_name("port") and "://" in text


def _known(name: str, known: Iterable[str], complaint: str, show: Any) -> str:
    if name in known:
        return name
    near = difflib.get_close_matches(name, list(known), n=1)
    raise ConfigError(complaint + (f"; did you mean {show(near[0])}?" if near else ""))


def _explain(error: ValidationError, origins: Mapping[str, str]) -> str:
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        return str(first["msg"]).removeprefix("Value error, ")
    name = str(first["loc"][0])
    message = str(first["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if first["type"] in _WRONG_KINDS:  # from a file: variables and flags are always text
        message = "must be text; put it in quotes, for the file's syntax makes a number, a date or the like of it"
    if name not in (*SECRETS, *_SECRET_FILES):
        value = first["input"]
        message += f", not {(shown(name, value) if isinstance(value, str) else value)!r}"
    return f"{origins.get(name, name)}: {message}"
