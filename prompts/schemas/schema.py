"""Writes grammars for structured replies and tool inputs: JSON schemas, regular expressions, choices, Lark.

A grammar is text in llguidance's Lark dialect, handed to the engine; this file knows neither that library nor tokens.
Schemas are embedded, not interpreted: the compiler finds out whether one makes sense.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# JSON on one line, as in the training data (one space or none after a comma or a colon). With unlimited whitespace,
# models get stuck writing it.
_JSON_STYLE = {"whitespace_flexible": False, "item_separator": r",\x20?", "key_separator": r":\x20?"}


@dataclass(frozen=True, slots=True)
class TextInput:
    """The input of a tool that takes text or code instead of JSON.

    Attributes:
        rule: grammar rule body that the input must match; None leaves it free.
    """

    rule: str | None = None


# The JSON schema of a tool's arguments, or the form of its text input.
ToolInput = Mapping[str, Any] | TextInput


def arguments_grammar(tool_input: ToolInput) -> str:
    """Returns the grammar of a tool's input, following its label."""
    return whole_grammar(input_rule(tool_input))


def input_rule(tool_input: ToolInput) -> str:
    """Returns the rule body of a tool's input, including the space before it (free text includes its own)."""
    if not isinstance(tool_input, TextInput):
        return f'" " {json_rule(tool_input, is_lenient=True)}'
    return r"/(.|\n)*/" if tool_input.rule is None else f'" " {tool_input.rule}'


def whole_grammar(rule: str) -> str:
    """Returns the grammar of a reply that matches this rule body from end to end."""
    return f"%llguidance {{}}\nstart: {rule}\n"


def json_rule(schema: Mapping[str, Any], *, is_lenient: bool = False) -> str:
    """Returns the rule body of a JSON value that satisfies a schema.

    Args:
        schema: its own `x-guidance` options win over ours.
        is_lenient: ignore keywords that cannot be enforced instead of refusing the schema: for tools, enforcing most
            of a schema is better than not calling the tool at all.
    """
    own = schema.get("x-guidance")
    options = {**_JSON_STYLE, **(own if isinstance(own, Mapping) else {})}
    if is_lenient:
        options["lenient"] = True
    return f"%json {json.dumps({**schema, 'x-guidance': options}, ensure_ascii=True)}"


def regex_rule(pattern: str) -> str:
    """Returns the rule body of text that matches a regular expression from end to end."""
    out = []
    is_escaped = False
    for character in pattern:
        written = {"/": "/", "\n": "n"}.get(character)
        out.append(character if written is None else written if is_escaped else f"\\{written}")
        is_escaped = character == "\\" and not is_escaped
    return f"/{''.join(out)}/"


def lark_rule(grammar: str) -> str:
    """Returns the rule body of text that matches a complete Lark grammar."""
    return f"%lark {{\n{grammar}\n}}"


def choice_rule(choices: Sequence[str]) -> str:
    """Returns the rule body of one of these texts."""
    return "(" + " | ".join(map(literal, choices)) + ")"


def arguments_schema(parameters: Any) -> Mapping[str, Any]:
    """Returns the JSON schema of a tool's arguments. Objects that list their properties allow no others.

    Args:
        parameters: a JSON schema (OpenAI's style), a list of {name, description, required, schema} (Qwen's style), or
            None for a tool without parameters.

    Raises:
        ValueError: it is none of these.
    """
    if parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if isinstance(parameters, Mapping):
        # With OpenAI, {} means any object.
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


# Next to one of these, a closed object might be unsatisfiable: each part would refuse the others' properties.
_COMBINATIONS = frozenset({"allOf", "anyOf", "oneOf", "not", "if", "$ref", "dependentSchemas", "patternProperties"})
# Deeper schemas are not closed; the compiler refuses them anyway.
_MAX_CLOSED_DEPTH = 32


def _closed(schema: Mapping[str, Any], depth: int = 0) -> Mapping[str, Any]:
    """Sets `additionalProperties: false` where the schema lists properties and does not say.

    JSON Schema's default allows any other property. Whoever lists a tool's parameters means these only, and a model
    that may invent more does.
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
    """Returns a Lark string literal. JSON's escapes are a subset of Lark's."""
    return json.dumps(text, ensure_ascii=True)
