"""Whether a JSON schema has any finite value at all.

Compilers of grammars take a schema that only ever asks for more of itself ("a node needs a child, which is a node"),
and generation would then run to its limit without a value. This finds such schemas before. It reads just what
makes a value need others; all else is the compiler's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prompts.schemas.subschemas import MISSING, anchors, find

_SCALARS = frozenset({"string", "number", "integer", "boolean", "null"})
# A schema with none of these has a finite value.
_DEMANDS = frozenset({"$ref", "allOf", "anyOf", "oneOf", "required", "minItems"})


def has_finite_value(schema: Mapping[str, Any]) -> bool:
    """Whether some finite value may satisfy the schema.

    Time is linear in the schema, however its definitions refer to each other.

    Args:
        schema: JSON schema; malformed parts of it count as satisfiable.
    """
    return _Gates(schema).is_open(schema)


class _Gate:
    """Opens once enough of what it needs is open.

    Attributes:
        missing: how many more have to open.
        feeds: the gates that need this one.
    """

    __slots__ = ("feeds", "missing")

    def __init__(self, missing: int) -> None:
        self.missing = missing
        self.feeds: list[_Gate] = []


class _Gates:
    """The schemas inside a schema as gates that are open if a finite value satisfies them.

    What opens is told to the gates that need it, once each: looking again at all that are shut, until nothing
    changes, would take a pass for every link of a chain of references, on the event loop.
    """

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._anchors: dict[str, str] | None = None
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
        """Of a gate or a schema; None if it is open anyway."""
        if isinstance(child, Mapping):
            return self._of_schema.get(id(child))
        if isinstance(child, _Gate):
            return child
        return _Gate(1) if child is False else None

    def _need_all(self, children: Iterable[Any], gate: _Gate) -> _Gate:
        """Lets a gate need all of some gates and schemas."""
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
        """A gate that needs one of them."""
        gate = _Gate(1)
        for child in children:
            needed = self._gate(child)
            if needed is None:
                return None
            needed.feeds.append(gate)
        return gate

    def _needed(self, node: Mapping[str, Any]) -> Iterator[Any]:
        """All that a schema asks of its values."""
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
        # What is no type of JSON's is the compiler's to refuse.
        parts = [_object_parts(node)] if "object" in kinds else []
        parts += [_array_parts(node)] if "array" in kinds else []
        if len(parts) == 1:
            yield from parts[0]
        elif parts:
            yield self._any([self._need_all(part, _Gate(0)) for part in parts])

    def _resolve(self, reference: str) -> Any:
        """What a reference points at; True (anything) where that is nothing, or outside."""
        if not reference.startswith("#"):
            return True
        if reference != "#" and not reference.startswith("#/"):
            if self._anchors is None:
                self._anchors = anchors(self._root)
            reference = self._anchors.get(reference, "")
        place = find(self._root, reference) if reference else MISSING
        return True if place is MISSING else place


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


def _object_parts(node: Mapping[str, Any]) -> list[Any]:
    """The schemas without whose values no object is whole."""
    properties = node.get("properties")
    if not isinstance(properties, Mapping):
        return []
    required = (name for name in _list(node.get("required")) if isinstance(name, str))
    return [properties[name] for name in required if name in properties]


def _array_parts(node: Mapping[str, Any]) -> list[Any]:
    """The schemas without whose values no array is whole."""
    least = node.get("minItems")
    if not isinstance(least, int) or least < 1:
        return []
    first = _list(node.get("prefixItems"))
    return [*first[:least], *([node.get("items", True)] if least > len(first) else [])]


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else ()
