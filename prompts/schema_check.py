"""Whether a JSON schema has any finite value at all.

Compilers of grammars take a schema that only ever asks for more of itself ("a node needs a child, which is a node"),
and generation would then run to its limit without a value. This finds such schemas before. It reads just what
makes a value need others; all else is the compiler's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

_SCALARS = frozenset({"string", "number", "integer", "boolean", "null"})


def has_finite_value(schema: Mapping[str, Any]) -> bool:
    """Whether some finite value may satisfy the schema.

    Time is linear in the schema for each level at which definitions refer to each other.

    Args:
        schema: JSON schema; malformed parts of it count as satisfiable.
    """
    # Children before parents, so that one pass settles everything but references upwards.
    nodes = list(_subschemas(schema))[::-1]
    finite: set[int] = set()
    while True:
        num_before = len(finite)
        for node in nodes:
            if id(node) not in finite and _is_finite(node, schema, finite):
                finite.add(id(node))
        if id(schema) in finite:
            return True
        if len(finite) == num_before:
            return False


def _subschemas(root: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All objects inside a schema, parents first: what is no schema among them does no harm."""
    stack: list[Any] = [root]
    while stack:
        item = stack.pop()
        if isinstance(item, Mapping):
            yield item
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def _is_finite(node: Mapping[str, Any], root: Mapping[str, Any], finite: set[int]) -> bool:
    """Whether a schema has a finite value, as far as is known of those inside it."""

    def known(child: Any) -> bool:
        return child is not False if not isinstance(child, Mapping) else id(child) in finite

    reference = node.get("$ref")
    if isinstance(reference, str) and not known(_resolve(root, reference)):
        return False
    if not all(map(known, _list(node.get("allOf")))):
        return False
    for key in ("anyOf", "oneOf"):
        branches = _list(node.get(key))
        if branches and not any(map(known, branches)):
            return False
    types = node.get("type")
    kinds = {types} if isinstance(types, str) else set(map(str, _list(types)))
    if not kinds or kinds & _SCALARS or "enum" in node or "const" in node:
        return True
    if "object" in kinds and _has_finite_object(node, known):
        return True
    # What is no type of JSON's is the compiler's to refuse.
    return _has_finite_array(node, known) if "array" in kinds else "object" not in kinds


def _has_finite_object(node: Mapping[str, Any], known: Callable[[Any], bool]) -> bool:
    properties = node.get("properties")
    if not isinstance(properties, Mapping):
        return True
    required = (name for name in _list(node.get("required")) if isinstance(name, str))
    return all(known(properties[name]) for name in required if name in properties)


def _has_finite_array(node: Mapping[str, Any], known: Callable[[Any], bool]) -> bool:
    least = node.get("minItems")
    if not isinstance(least, int) or least < 1:
        return True
    first = _list(node.get("prefixItems"))
    return all(map(known, first[:least])) and (least <= len(first) or known(node.get("items", True)))


def _resolve(root: Mapping[str, Any], reference: str) -> Any:
    """What a reference inside the schema points at; True (anything) where that is nothing."""
    if not reference.startswith("#"):
        return True
    place: Any = root
    for step in reference[1:].split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(place, Mapping) and step in place:
            place = place[step]
        elif isinstance(place, list) and step.isdecimal() and int(step) < len(place):
            place = place[int(step)]
        else:
            return True
    return place


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else ()
