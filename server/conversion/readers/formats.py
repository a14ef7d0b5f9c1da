"""Forms that a reply must have: `response_format`, `structured_outputs` as vLLM has it, and peers' names for these.

Each becomes the rule of a grammar, or a whole grammar; whether it can be compiled is checked elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llguidance.gbnf_to_lark import gbnf_to_lark

from model.contract.errors import InvalidRequestError
from model.contract.grammar_compiler import MAX_GRAMMAR_CHARS
from prompts.schemas.check import has_finite_value
from prompts.schemas.schema import choice_rule, json_rule, regex_rule
from server.conversion.neutral_request import AnswerFormat
from server.wire.shapes.fields import MAX_CHOICE_TEXTS
from server.wire.shapes.generation import GenerationFields

_MAX_GBNF_CHARS = 32 * 1024  # it is converted in Python, on the event loop
_KINDS = ("json", "regex", "choice", "grammar", "json_object")
# They say where vLLM may fall back to another library, which no reply shows.
_HARMLESS_OPTIONS = frozenset({"disable_fallback", "_backend"})
# Peers' names of the kinds: vLLM's older ones, then llama.cpp's and SGLang's.
PEER_NAMES = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "json",
    "regex": "regex",
    "grammar": "grammar",
    "ebnf": "grammar",
}


def read_answer_format(
    request: GenerationFields, response_format: Mapping[str, Any] | None, format_param: str = "response_format"
) -> AnswerFormat | None:
    """Reads the form that a request's answers must have; None is free text.

    Args:
        request: may have vLLM's and its peers' fields for it.
        response_format: OpenAI's object.
        format_param: the field that holds this object.

    Raises:
        InvalidRequestError: malformed, or two formats at once.
    """
    formats: dict[str, Any] = {}
    if response_format is not None and response_format.get("type") != "text":
        formats[format_param] = response_format
    if request.structured_outputs is not None:
        formats["structured_outputs"] = request.structured_outputs
    for name in PEER_NAMES:
        value = getattr(request, name)
        if value is not None and value != "":
            formats[name] = value
    if len(formats) > 1:
        first, *_, last = formats
        raise InvalidRequestError(f"Send either '{first}' or '{last}', not both.", param=last)
    for param, value in formats.items():
        if param == format_param:
            return read_response_format(value, param)
        if param == "structured_outputs":
            return _from_structured_outputs(value)
        return _from_kind(PEER_NAMES[param], value, param, param)
    return None


def read_response_format(value: Mapping[str, Any], param: str) -> AnswerFormat:
    """Reads a format that is not plain text.

    Args:
        value: OpenAI's object.
        param: the field that holds it.

    Raises:
        InvalidRequestError: malformed.
    """
    kind = value.get("type")
    if kind not in ("json_object", "json_schema"):
        raise InvalidRequestError(
            f"'{param}.type' is 'text', 'json_object' or 'json_schema', not {str(kind)[:40]!r}.", param=param
        )
    # OpenAI's place, then that of llama.cpp and hosts of open models, then that of text-generation-inference.
    inner = value.get("json_schema")
    places = {
        "json_schema.schema": inner.get("schema") if isinstance(inner, Mapping) else None,
        "schema": value.get("schema"),
        "value": value.get("value"),
    }
    place, schema = next(((p, s) for p, s in places.items() if s is not None), ("json_schema.schema", None))
    if schema is None and kind == "json_object":
        return AnswerFormat(json_rule({"type": "object"}), None, param)
    if not isinstance(schema, Mapping):
        raise InvalidRequestError(f"'{param}.{place}' must be a JSON schema.", param=param)
    return _of_schema(schema, f"{param}.{place}", param)


def _from_structured_outputs(value: Mapping[str, Any]) -> AnswerFormat:
    param = "structured_outputs"
    kinds = [key for key, one in value.items() if one not in (None, False) and key not in _HARMLESS_OPTIONS]
    for key in kinds:
        if key not in _KINDS:
            raise InvalidRequestError(
                f"'{param}' takes one of {', '.join(_KINDS)}; {key[:60]!r} is not served.", param=param
            )
    if not kinds:
        raise InvalidRequestError(f"'{param}' needs one of {', '.join(_KINDS)}.", param=param)
    if len(kinds) > 1:
        raise InvalidRequestError(f"'{param}' takes one of {', '.join(kinds)}, not several.", param=param)
    (kind,) = kinds
    return _from_kind(kind, value[kind], f"{param}.{kind}", param)


def _from_kind(kind: str, value: Any, name: str, param: str) -> AnswerFormat:
    """Reads a value of one of the `_KINDS`; error texts call it `name`."""
    if kind == "json_object":
        return AnswerFormat(json_rule({"type": "object"}), None, param)
    if kind == "json":
        return _of_schema(_schema(value, name, param), name, param)
    if kind == "choice":
        if not isinstance(value, list) or not value or not all(isinstance(text, str) and text for text in value):
            raise InvalidRequestError(f"'{name}' must be a list of texts.", param=param)
        if len(value) > MAX_CHOICE_TEXTS:
            raise InvalidRequestError(f"'{name}' may have at most {MAX_CHOICE_TEXTS} texts.", param=param)
        return AnswerFormat(choice_rule(value), None, param)
    if not isinstance(value, str) or not value or len(value) > MAX_GRAMMAR_CHARS:
        raise InvalidRequestError(f"'{name}' must be a text of reasonable length.", param=param)
    if not value.isascii() and value != value.encode(errors="replace").decode():
        raise InvalidRequestError(f"'{name}' has half a surrogate pair in it.", param=param)
    if kind == "regex":
        return AnswerFormat(regex_rule(value), None, param)
    return AnswerFormat(None, _lark(value, name, param), param)


def _schema(value: object, name: str, param: str) -> Mapping[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(f"'{name}' is not valid JSON: {error}.", param=param) from error
    if not isinstance(value, Mapping):
        raise InvalidRequestError(f"'{name}' must be a JSON schema.", param=param)
    return value


def _of_schema(schema: Mapping[str, Any], place: str, param: str) -> AnswerFormat:
    try:
        rule = json_rule(schema)
    except RecursionError as error:
        raise InvalidRequestError(f"'{place}' cannot be enforced: the schema is too deep.", param=param) from error
    if len(rule) > MAX_GRAMMAR_CHARS:
        raise InvalidRequestError(
            f"'{place}' cannot be enforced: the schema is longer than {MAX_GRAMMAR_CHARS} characters.", param=param
        )
    if not has_finite_value(schema):
        raise InvalidRequestError(
            f"'{place}' cannot be enforced: the schema requires itself without end, so no value satisfies it.",
            param=param,
        )
    return AnswerFormat(rule, None, param, schema, place)


def _lark(text: str, name: str, param: str) -> str:
    """Returns a grammar in Lark's notation; it may come in llama.cpp's (GBNF)."""
    if "::=" not in text:
        return text
    if len(text) > _MAX_GBNF_CHARS:
        raise InvalidRequestError(
            f"'{name}' in GBNF may have at most {_MAX_GBNF_CHARS} characters; use Lark's notation.",
            param=param,
        )
    try:
        return str(gbnf_to_lark(text))
    except Exception as error:  # the converter raises whatever its parser stumbles over
        raise InvalidRequestError(f"'{name}' cannot be read: {str(error)[:300]}", param=param) from error
