"""Grammars of what a reply or a tool's input may be: a value of a JSON schema, or another format that was asked for.

It exists so that "valid by construction" is one text handed to the engine. A grammar is written in llguidance's Lark
dialect; this file only writes it, and knows neither that library nor tokens. Schemas are embedded, not interpreted:
whether one makes sense is found out by whoever compiles the grammar.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# JSON on one line, as these models saw it in training (a space after a comma or a colon, or none). White space that
# JSON would allow without end is a place where models lose themselves.
_JSON_STYLE = {"whitespace_flexible": False, "item_separator": r",\x20?", "key_separator": r":\x20?"}


@dataclass(frozen=True, slots=True)
class TextInput:
    """The input of a tool that takes text or code, not JSON.

    Attributes:
        rule: body of a grammar rule that the input must match; None leaves it free.
    """

    rule: str | None = None


# The JSON schema of a tool's arguments, or what else its input is.
ToolInput = Mapping[str, Any] | TextInput


def arguments_grammar(tool_input: ToolInput) -> str:
    """The grammar of a tool's input on its own, as it follows a label."""
    return whole_grammar(input_rule(tool_input))


def input_rule(tool_input: ToolInput) -> str:
    """A rule body: a tool's input, after a space where it is not free text."""
    if not isinstance(tool_input, TextInput):
        return f'" " {json_rule(tool_input, is_lenient=True)}'
    return r"/(.|\n)*/" if tool_input.rule is None else f'" " {tool_input.rule}'


def whole_grammar(rule: str) -> str:
    """The grammar of a reply that matches a rule's body from end to end."""
    return f"%llguidance {{}}\nstart: {rule}\n"


def json_rule(schema: Mapping[str, Any], *, is_lenient: bool = False) -> str:
    """A rule body: one JSON value of a schema.

    Args:
        schema: JSON schema.
        is_lenient: ignore keywords that cannot be enforced instead of refusing them: a tool whose schema uses one
            is still better called with most of it enforced than not at all.
    """
    own = schema.get("x-guidance")
    options = {**_JSON_STYLE, **(own if isinstance(own, Mapping) else {})}
    if is_lenient:
        options["lenient"] = True
    return f"%json {json.dumps({**schema, 'x-guidance': options}, ensure_ascii=True)}"


def regex_rule(pattern: str) -> str:
    """A rule body: text that a regular expression matches from end to end."""
    out = []
    is_escaped = False
    for character in pattern:
        written = {"/": "/", "\n": "n"}.get(character)
        out.append(character if written is None else written if is_escaped else f"\\{written}")
        is_escaped = character == "\\" and not is_escaped
    return f"/{''.join(out)}/"


def lark_rule(grammar: str) -> str:
    """A rule body: text that a whole grammar of its own matches."""
    return f"%lark {{\n{grammar}\n}}"


def choice_rule(choices: Sequence[str]) -> str:
    """A rule body: one of some texts."""
    return "(" + " | ".join(map(literal, choices)) + ")"


def arguments_schema(parameters: Any) -> Mapping[str, Any]:
    """The JSON schema of a tool's arguments; objects that list their properties have no others.

    Args:
        parameters: a JSON schema (OpenAI style), a list of {name, description, required, schema} (Qwen style), or
            None for a tool without parameters.

    Raises:
        ValueError: neither of these.
    """
    if parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if isinstance(parameters, Mapping):
        # What OpenAI means by {}: any object.
        whole = parameters if "type" in parameters or "$ref" in parameters else {"type": "object", **parameters}
        return _closed(whole)
    if not isinstance(parameters, Sequence) or isinstance(parameters, str):
        raise ValueError("'parameters' must be a JSON schema")
    properties: dict[str, Any] = {}
    required: list[str] = []
    for parameter in parameters:
        if not isinstance(parameter, Mapping) or not isinstance(parameter.get("name"), str):
            raise ValueError("each of 'parameters' needs a 'name'")
        schema = parameter.get("schema")
        properties[parameter["name"]] = schema if isinstance(schema, Mapping) else {}
        if parameter.get("required"):
            required.append(parameter["name"])
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


# Beside one of these a closed object might satisfy nothing: each part would refuse the others' properties.
_COMBINATIONS = frozenset({"allOf", "anyOf", "oneOf", "not", "if", "$ref", "dependentSchemas", "patternProperties"})
# Deeper ones are left as they are; compilers refuse them anyway.
_MAX_CLOSED_DEPTH = 32


def _closed(schema: Mapping[str, Any], depth: int = 0) -> Mapping[str, Any]:
    """Allows no properties but those listed, where the schema does not say.

    JSON schema means "any others, too", but whoever lists a tool's parameters means these; a model that may invent
    more does.
    """
    if depth > _MAX_CLOSED_DEPTH:
        return schema
    closed = dict(schema)
    properties = schema.get("properties")
    if isinstance(properties, Mapping):
        closed["properties"] = {
            name: _closed(value, depth + 1) if isinstance(value, Mapping) else value
            for name, value in properties.items()
        }
        required = schema.get("required")
        is_complete = not isinstance(required, list) or all(
            isinstance(name, str) and name in properties for name in required
        )
        if is_complete and not _COMBINATIONS & schema.keys():
            closed.setdefault("additionalProperties", False)
    if isinstance(schema.get("items"), Mapping):
        closed["items"] = _closed(schema["items"], depth + 1)
    return closed


def literal(text: str) -> str:
    """A Lark string: JSON's escapes are a subset of its own."""
    return json.dumps(text, ensure_ascii=True)
