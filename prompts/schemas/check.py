"""Tells whether any finite value satisfies a JSON schema.

Grammar compilers accept a schema that requires itself without end ("a node needs a child, which is a node");
generation would then run to its token limit without completing a value. This check finds such schemas first. It reads
only the keywords that make one value require others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prompts.schemas.subschemas import MISSING, References, find

_SCALARS = frozenset({"string", "number", "integer", "boolean", "null"})
# A schema without any of these has a finite value.
_DEMANDS = frozenset({"$ref", "allOf", "anyOf", "oneOf", "required", "minItems"})


def has_finite_value(schema: Mapping[str, Any]) -> bool:
    """Returns whether a finite value can satisfy the schema, in time linear in the schema.

    Malformed parts of the schema count as satisfiable.
    """
    return _Gates(schema).is_open(schema)


class _Gate:
    """Opens once enough of the gates it needs are open.

    Attributes:
        missing: how many more gates have to open first.
        feeds: the gates that wait for this one.
    """

    __slots__ = ("feeds", "missing")

    def __init__(self, missing: int) -> None:
        self.missing = missing
        self.feeds: list[_Gate] = []


class _Gates:
    """The subschemas of a schema, each as a gate that opens if a finite value satisfies it.

    Each opened gate notifies the gates that wait for it, once. Rescanning all shut gates until nothing changes would
    take one pass for every link in a chain of references, on the event loop.
    """

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._references = References(root)
        self._opening: list[_Gate] = []
        nodes = {id(node): node for node in _subschemas(root) if not _DEMANDS.isdisjoint(node)}
        self._of_schema = {key: _Gate(1) for key in nodes}
        for key, node in nodes.items():
            self._need_all(self._needed(node), self._of_schema[key])
        while self._opening:
            for gate in self._opening.pop().feeds:
                gate.missing -= 1
                if gate.missing == 0:
                    self._opening.append(gate)

    def is_open(self, schema: Mapping[str, Any]) -> bool:
        gate = self._gate(schema)
        return gate is None or gate.missing <= 0

    def _gate(self, child: Any) -> _Gate | None:
        """Returns the gate of a schema (gates pass through), or None if it is open anyway."""
        if isinstance(child, Mapping):
            return self._of_schema.get(id(child))
        if isinstance(child, _Gate):
            return child
        return _Gate(1) if child is False else None

    def _need_all(self, children: Iterable[Any], gate: _Gate) -> _Gate:
        """Makes a gate wait for all of these gates and schemas."""
        gate.missing = 0
        for child in children:
            needed = self._gate(child)
            if needed is not None:
                gate.missing += 1
                needed.feeds.append(gate)
        if gate.missing == 0:
            self._opening.append(gate)
        return gate

    def _any(self, children: Iterable[Any]) -> _Gate | None:
        """Returns a gate that waits for any one of these, or None if one is open anyway."""
        gate = _Gate(1)
        for child in children:
            needed = self._gate(child)
            if needed is None:
                return None
            needed.feeds.append(gate)
        return gate

    def _needed(self, node: Mapping[str, Any]) -> Iterator[Any]:
        """Yields the schemas and gates that must be satisfied for this schema to be."""
        yield from _list(node.get("allOf"))
        reference = node.get("$ref")
        if isinstance(reference, str):
            yield self._resolve(reference)
        for key in ("anyOf", "oneOf"):
            branches = _list(node.get(key))
            if branches:
                yield self._any(branches)
        types = node.get("type")
        kinds = {types} if isinstance(types, str) else set(map(str, _list(types)))
        if not kinds or kinds & _SCALARS or "enum" in node or "const" in node:
            return
        # Unknown types are refused by the compiler.
        parts = [_object_parts(node)] if "object" in kinds else []
        parts += [_array_parts(node)] if "array" in kinds else []
        if len(parts) == 1:
            yield from parts[0]
        elif parts:
            yield self._any([self._need_all(part, _Gate(0)) for part in parts])

    def _resolve(self, reference: str) -> Any:
        """Returns the target of a reference; True (any value) if it points nowhere or outside the schema."""
        if not reference.startswith("#"):
            return True
        pointer = self._references.pointer(reference)
        place = MISSING if pointer is None else find(self._root, pointer)
        return True if place is MISSING else place


def _subschemas(root: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yields all objects inside a schema, parents first. Objects that are not schemas do no harm here."""
    stack: list[Any] = [root]
    while stack:
        item = stack.pop()
        if isinstance(item, Mapping):
            yield item
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def _object_parts(node: Mapping[str, Any]) -> list[Any]:
    """Returns the schemas of the required properties."""
    properties = node.get("properties")
    if not isinstance(properties, Mapping):
        return []
    required = (name for name in _list(node.get("required")) if isinstance(name, str))
    return [properties[name] for name in required if name in properties]


def _array_parts(node: Mapping[str, Any]) -> list[Any]:
    """Returns the schemas of the items that `minItems` requires."""
    least = node.get("minItems")
    if not isinstance(least, int) or least < 1:
        return []
    first = _list(node.get("prefixItems"))
    return [*first[:least], *([node.get("items", True)] if least > len(first) else [])]


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else ()
