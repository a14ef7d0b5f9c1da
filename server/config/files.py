"""Files that settings come from: the configuration, and callers' keys.

Errors name the place and do not quote it: any line may hold a key.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

from model.contract.errors import ConfigError

# A quotation in an error of PyYAML: a character or the name of a token may be shown, a piece of the file may not.
_QUOTED_TEXT = re.compile(r""" ['"](?!(.|\\.|\\x..|<[a-z ]+>)['"]).*['"]""")


def read_config_file(path: Path) -> dict[str, Any]:
    """Returns the settings of a file: TOML where its name ends in .toml, else YAML.

    Raises:
        ConfigError: it cannot be read or is not valid; the message names the place.
    """
    is_toml = path.suffix == ".toml"
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text) if is_toml else yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration file ({error.strerror})") from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        kind = "TOML" if is_toml else "YAML"
        raise ConfigError(f"{path}: not valid {kind}: {_complaint(error)}") from None
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ConfigError(f"{path}: must hold settings, one `name: value` each")
    return data


def _complaint(error: Exception) -> str:
    match error:
        case yaml.MarkedYAMLError():
            mark = error.problem_mark or error.context_mark
            place = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
            problem = _QUOTED_TEXT.sub("", error.problem or "")
            return f"{place}{problem} (values with special characters need quotes)"
        case tomllib.TOMLDecodeError():  # it quotes single characters and keys of settings only
            return str(error)
        case UnicodeDecodeError():
            return f"byte {error.start} is not UTF-8"
        case RecursionError():
            return "nested too deeply"
    return "it holds a character, a number or a date that cannot be"


def read_key_file(path: Path) -> tuple[str, ...]:
    """Returns the keys of a file with one key a line.

    Raises:
        ConfigError: it cannot be read, or holds no key.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        # The path is not shown: it may be a key, given by mistake.
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(
            f"--api-key-file: cannot read the key file ({reason}); it takes the path of a file with one key a line"
        ) from None
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise ConfigError(f"{path}: holds no key; put one on each line")
    return keys
