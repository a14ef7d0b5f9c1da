"""Walks the subschemas of a JSON schema, and resolves references inside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any
from urllib.parse import unquote

Path = tuple[str | int, ...]

# Keywords whose value is one schema, a mapping of names to schemas, or a list of schemas.
ONE = frozenset(
    {
        "additionalProperties", "additionalItems", "contains", "not", "if", "then", "else", "propertyNames",
        "unevaluatedProperties", "unevaluatedItems",
    }
)  # fmt: skip
NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
LISTED = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
MISSING = object()


def children(node: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    """Yields the values in all places where subschemas belong, whether they are schemas or not."""
    for keyword, value in node.items():
        if keyword in ONE or (keyword == "items" and not isinstance(value, list)):
            yield (keyword,), value
        elif keyword in NAMED and isinstance(value, Mapping):
            yield from (((keyword, name), child) for name, child in value.items())
        elif (keyword in LISTED or keyword == "items") and isinstance(value, list):
            yield from (((keyword, index), child) for index, child in enumerate(value))


def subschemas(root: Mapping[str, Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yields the schema and all its subschemas, with their paths; itself first."""
    stack: list[tuple[Path, Any]] = [((), root)]
    while stack:
        path, node = stack.pop()
        if isinstance(node, dict):
            yield path, node
            stack.extend((path + steps, child) for steps, child in children(node))


class References:
    """The references inside one schema. Named places are collected when a reference first needs them."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root

    def pointer(self, reference: str) -> str | None:
        """Returns a local reference ("#...") as a JSON pointer ("#/a/place"), or None if no place has its name."""
        return reference if reference == "#" or reference.startswith("#/") else self._anchors.get(reference)

    @cached_property
    def _anchors(self) -> dict[str, str]:
        """References by name ("#name", from `$anchor` or draft-07's `$id`), and the pointers that they stand for."""
        found: dict[str, str] = {}
        for path, node in subschemas(self._root):
            anchor, own_id = node.get("$anchor"), node.get("$id", node.get("id"))
            if isinstance(anchor, str):
                found.setdefault(f"#{anchor}", pointer(path))
            if isinstance(own_id, str) and own_id.startswith("#") and len(own_id) > 1:
                found.setdefault(own_id, pointer(path))
        return found


def pointer(path: Path) -> str:
    """Returns the JSON pointer of a path inside a schema."""
    return "#" + "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)


def find(root: Mapping[str, Any], reference: str) -> Any:
    """Returns the value at a JSON pointer ("#", "#/..."), or MISSING."""
    place: Any = root
    for step in unquote(reference[1:]).split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(place, Mapping) and step in place:
            place = place[step]
        elif isinstance(place, list) and step.isdecimal() and int(step) < len(place):
            place = place[int(step)]
        else:
            return MISSING
    return place


def without(schema: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Returns a copy of the schema without the value at a path, which must not be the root; list items become {}."""
    step, *rest = path
    changed = dict(schema)
    if not rest:
        del changed[str(step)]
    else:
        changed[str(step)] = _without(changed[str(step)], rest)
    return changed


def _without(value: Any, path: list[str | int]) -> Any:
    if isinstance(value, list):
        index, *rest = path
        changed = list(value)
        changed[int(index)] = _without(changed[int(index)], rest) if rest else {}
        return changed
    return without(value, tuple(path))
