"""Finds the keywords of a JSON schema that cannot be enforced, without compiling it, and removes them.

Tool schemas come from generators of all kinds, and the grammar compiler refuses a whole schema for one keyword that
it cannot read. Faults that only the compiler can find, such as an unsupported regular expression, are left to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from prompts.schemas.subschemas import LISTED, MISSING, NAMED, ONE, Path, References, find, subschemas

MAX_DEPTH = 100

_TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
# Names of these types in programming languages and libraries, in lower case.
_TYPE_NAMES = {
    **dict.fromkeys(("dict", "map", "mapping", "struct"), "object"),
    **dict.fromkeys(("list", "tuple", "set"), "array"),
    **dict.fromkeys(("str", "text"), "string"),
    **dict.fromkeys(("float", "double", "decimal"), "number"),
    **dict.fromkeys(("int", "long"), "integer"),
    "bool": "boolean",
    **dict.fromkeys(("none", "nonetype", "nil"), "null"),
}
# Keywords that llguidance does not implement, each with the values that demand nothing.
UNENFORCED: dict[str, tuple[object, ...]] = {
    "uniqueItems": (False,),
    "contains": (),
    "minContains": (),
    "maxContains": (),
    "not": (False,),
    "if": (),
    "then": (),
    "else": (),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "dependencies": ({},),
    "propertyNames": (True, {}),
    "unevaluatedProperties": (True, {}),
    "unevaluatedItems": (True, {}),
    "$dynamicRef": (),
    "$recursiveRef": (),
}
FORMATS = frozenset({"date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"})


class Fault(NamedTuple):
    """A keyword that cannot be enforced, and the reason."""

    path: Path
    reason: str


def _has_optional(node: Mapping[str, Any]) -> bool:
    properties, required = node.get("properties"), node.get("required")
    names = set(required) if isinstance(required, list) and _is_texts(required) else set()
    return isinstance(properties, Mapping) and not properties.keys() <= names


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)  # type: ignore[operator,call-overload]


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


_COUNT = (_is_count, "must be a whole number, 0 or more")
_NUMBER = (_is_number, "must be a number")
_TEXT = (lambda value: isinstance(value, str), "must be a text")
_OBJECT = (lambda value: isinstance(value, Mapping), "must be an object")
_SCHEMAS = (lambda value: isinstance(value, list) and bool(value), "must be a list of schemas")
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "enum": (lambda value: isinstance(value, list) and bool(value), "must be a list of values, at least one"),
    "required": (_is_texts, "must be a list of names"),
    **dict.fromkeys(NAMED, _OBJECT),
    **dict.fromkeys(LISTED, _SCHEMAS),
    **dict.fromkeys(("pattern", "format", "$ref"), _TEXT),
    **dict.fromkeys(
        ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _COUNT
    ),
    **dict.fromkeys(("minimum", "maximum"), _NUMBER),
    **dict.fromkeys(
        ("exclusiveMinimum", "exclusiveMaximum"),
        (lambda value: _is_number(value) or isinstance(value, bool), "must be a number"),
    ),
    "multipleOf": (lambda value: _is_number(value) and value > 0, "must be a number above 0"),
}  # fmt: skip


_READ = frozenset({"type", "items", *UNENFORCED, *_CHECKS, *ONE})
# Other keywords that the compiler reads. The rest (descriptions, defaults, vendor keywords) does not constrain values.
_KEPT = frozenset({"const", "$id", "x-guidance"})
_DIALECTS = ("http://json-schema.org/", "https://json-schema.org/")


def examine(schema: Mapping[str, Any]) -> tuple[dict[str, Any], list[Fault]]:
    """Returns the schema without the keywords that cannot be enforced, and these as faults, in linear time.

    References by name (`$anchor`, draft-07's `$id`) become JSON pointers.
    """
    examination = _Examination(schema)
    examined = examination.schema(schema, (), 0)
    if not examination.refers_by_id:
        for _, node in subschemas(examined):
            node.pop("$id", None)  # unused, and the compiler refuses one that is not a URI
    return examined, examination.faults


def _is_dialect(value: object) -> bool:
    return isinstance(value, str) and value.startswith(_DIALECTS)


class _Examination:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._references = References(root)
        self.refers_by_id = False
        self.faults: list[Fault] = []

    @cached_property
    def _has_ids(self) -> bool:
        return any("$id" in node for _, node in subschemas(self._root))

    def schema(self, node: Mapping[str, Any], path: Path, depth: int) -> dict[str, Any]:
        enforced = {}
        for keyword, value in node.items():
            if keyword not in _READ or (keyword == "type" and isinstance(value, str) and value in _TYPES):
                if keyword in _KEPT or keyword == "type" or (keyword == "$schema" and _is_dialect(value)):
                    enforced[keyword] = value
                continue
            place = (*path, keyword)
            if keyword in ("minProperties", "maxProperties") and _has_optional(node):
                self._fault(place, "it is enforced only where all properties are required")
                continue
            kept = self._keyword(keyword, value, place, depth)
            if kept is not MISSING:
                enforced[keyword] = kept
        return enforced

    def _fault(self, path: Path, reason: str) -> object:
        self.faults.append(Fault(path, reason))
        return MISSING

    def _keyword(self, keyword: str, value: Any, place: Path, depth: int) -> Any:
        """Returns the enforceable part of a keyword's value, or MISSING."""
        neutral = UNENFORCED.get(keyword, ())
        if any(type(value) is type(one) and value == one for one in neutral):
            return MISSING
        if keyword in UNENFORCED:
            return self._fault(place, "this keyword is not enforced here")
        is_right, reason = _CHECKS.get(keyword, (None, ""))
        if is_right is not None and not is_right(value):
            return self._fault(place, f"it {reason}")
        if keyword == "format" and value not in FORMATS:
            return self._fault(place, f"the format {value[:60]!r} is not enforced here")
        if keyword == "type":
            return self._type(value, place)
        if keyword == "$ref":
            return self._reference(value, place)
        if is_right is _is_count:
            return int(value)
        if keyword in ONE or (keyword == "items" and not isinstance(value, list)):
            return self._subschema(value, place, depth)
        if keyword in NAMED:
            return {name: self._subschema(child, (*place, name), depth) for name, child in value.items()}
        if keyword in LISTED or keyword == "items":
            return [self._subschema(child, (*place, index), depth) for index, child in enumerate(value)]
        return value

    def _subschema(self, value: Any, place: Path, depth: int) -> Any:
        if isinstance(value, bool):
            return value
        if not isinstance(value, Mapping):
            self._fault(place, "it must be a schema: an object, or true or false")
            return {}
        if depth >= MAX_DEPTH:
            self._fault(place, f"it lies deeper than {MAX_DEPTH} schemas")
            return {}
        return self.schema(value, place, depth + 1)

    def _type(self, value: Any, place: Path) -> Any:
        names = [value] if isinstance(value, str) else value
        if not _is_texts(names) or not names:
            return self._fault(place, f"it must be one of {', '.join(sorted(_TYPES))}, or a list of them")
        meant = []
        for name in names:
            known = name if name in _TYPES else _TYPE_NAMES.get(name.lower(), name.lower())
            if known not in _TYPES:
                return self._fault(place, f"{name[:60]!r} is none of {', '.join(sorted(_TYPES))}")
            if known != name:
                self._fault(place, f"{name[:60]!r} is no type; {known!r} is meant")
            meant.append(known)
        return meant[0] if isinstance(value, str) else meant

    def _reference(self, value: str, place: Path) -> Any:
        if not value.startswith("#"):
            if self._has_ids:
                self.refers_by_id = True
                return value
            return self._fault(place, f"{value[:200]!r} is not in this schema, and nothing is fetched")
        pointer = self._references.pointer(value)
        if pointer is None:
            return self._fault(place, f"no place in this schema is called {value[:200]!r}")
        if not isinstance(find(self._root, pointer), Mapping | bool):
            return self._fault(place, f"there is no schema at {value[:200]!r}")
        return pointer


# Keywords that constrain values, in the order in which to try leaving them out. If a type contradicts a list of
# values, the values were meant, so `type` comes before `const` and `enum`.
_CONSTRAINTS = (
    *("x-guidance", "pattern", "format", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum"),
    *("exclusiveMaximum", "multipleOf", "minItems", "maxItems", "minProperties", "maxProperties"),
    *("patternProperties", "required"),
    *("additionalProperties", "prefixItems", "items", "allOf", "oneOf", "anyOf", "$ref", "type", "const", "enum"),
)


def constraints(schema: Mapping[str, Any]) -> list[Path]:
    """Returns the paths of the keywords that constrain values in an examined schema.

    The deepest come first: if a property can have no value, leaving out its keyword (or `required`) is enough.
    """
    rank = {keyword: number for number, keyword in enumerate(_CONSTRAINTS)}
    paths = [(*path, keyword) for path, node in subschemas(schema) for keyword in node if keyword in rank]
    return sorted(paths, key=lambda path: (-len(path), rank[str(path[-1])]))


def patterns(schema: Mapping[str, Any]) -> list[tuple[Path, str]]:
    """Returns the regular expressions in an examined schema, each with the path to remove to get rid of it."""
    found: list[tuple[Path, str]] = []
    for path, node in subschemas(schema):
        if "pattern" in node:
            found.append(((*path, "pattern"), node["pattern"]))
        found.extend(((*path, "patternProperties", key), key) for key in node.get("patternProperties", ()))
    return found
