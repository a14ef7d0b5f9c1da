"""Reads sizes as people write them: `512MiB`, `2GB`, `4g`, `1048576`."""

from __future__ import annotations

import re

_UNITS = {"": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS[f"{_letter}b"] = 1000**_power
    _UNITS[f"{_letter}ib"] = _UNITS[_letter] = 1024**_power
_UNITS["b"] = 1
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)


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
