"""Types of settings: how a flag's or a variable's text, or a file's value, becomes a value, and what is refused."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from model.contract.attention_windows import windows_of

ANY_NAME = "*"
_MAX_NAME_CHARS = 256
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)
_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS[f"{_letter}b"] = 1000**_power
    _UNITS[f"{_letter}ib"] = _UNITS[_letter] = 1024**_power


def parse_size(value: object) -> object:
    """Turns a text such as `1.5GiB` into bytes; anything but a text is left as it is.

    `GB` is 1000**3, `GiB` and `G` are 1024**3, and likewise for k, M and T.

    Raises:
        ValueError: it is a text but not a size.
    """
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    unit = _UNITS.get(match.group(2).lower()) if match else None
    if match is None or unit is None:
        raise ValueError("should be a number of bytes, or a size such as 512MiB, 2GB or 8G")
    return int(float(match.group(1)) * unit)


def check_adapter_name(name: str) -> None:
    """Refuses a name that cannot be a request's `model`.

    Raises:
        ValueError: it is blank, too long or has characters that nobody types.
    """
    if not 0 < len(name) <= _MAX_NAME_CHARS or not name.isprintable() or name != name.strip() or name == ANY_NAME:
        raise ValueError(f"should name an adapter by 1 to {_MAX_NAME_CHARS} printable characters, not {name[:100]!r}")


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


def _windows(value: object) -> object:
    """Reads `2048` or `512,1024,0` of a flag or variable; a file may hold a number or a list."""
    if value is None:
        return None
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    try:
        return windows_of([int(part) if isinstance(part, str) else part for part in parts], len(parts)) or (0,)
    except ValueError as error:
        raise ValueError("should be a number of tokens, or one a layer with commas between them; 0 is all") from error


def _named_once(adapters: tuple[str, ...]) -> tuple[str, ...]:
    names = [adapter.partition("=")[0] for adapter in adapters]
    for adapter, name in zip(adapters, names, strict=True):
        check_adapter_name(name)
        if not adapter.partition("=")[2].strip():
            raise ValueError(f"should be NAME=PATH, not {adapter[:100]!r}")
        if names.count(name) > 1:
            raise ValueError(f"names {name!r} twice")
    return adapters


Dtype = Literal["auto", "bfloat16", "float16", "float32"]
CacheDtype = Literal["auto", "bfloat16", "float16", "float32", "int8"]
Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]
Windows = Annotated[tuple[int, ...] | None, BeforeValidator(_windows)]
TokensOrContext = Annotated[int | Literal["context"], BeforeValidator(_tokens_or_context)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_one_or_more)]
Keys = Annotated[Texts, AfterValidator(_no_blank)]
Adapters = Annotated[Texts, AfterValidator(_named_once)]
Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], BeforeValidator(_one_or_more)]
