"""Formats a reply can be held to: `response_format`, and `structured_outputs` as vLLM has it.

Each becomes the rule of a grammar, or a whole grammar; whether it can be compiled is checked elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llguidance.gbnf_to_lark import gbnf_to_lark

from model.errors import InvalidRequestError
from model.grammar_compiler import MAX_GRAMMAR_CHARS
from prompts.schema import choice_rule, json_rule, regex_rule, whole_grammar
from prompts.schema_check import has_finite_value
from server.protocol import SamplingFields

MAX_CHOICE_TEXTS = 1024
_MAX_GBNF_CHARS = 32 * 1024  # it is converted in Python, on the event loop
_KINDS = ("json", "regex", "choice", "grammar", "json_object")


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """What an answer must look like.

    Attributes:
        rule: body of a grammar rule; None when a whole grammar is given.
        grammar: a whole grammar of the client's own; None when there is a rule.
        param: the field that asked for it.
    """

    rule: str | None
    grammar: str | None
    param: str

    def as_grammar(self) -> str:
        """The grammar of a reply that is nothing but the answer."""
        if self.grammar is not None:
            return self.grammar
        assert self.rule is not None, "one of the two is given"
        return whole_grammar(self.rule)


def read_answer_format(request: SamplingFields) -> AnswerFormat | None:
    """Reads what a request's answers must look like; None is free text.

    Raises:
        InvalidRequestError: malformed, or two formats at once.
    """
    response_format = getattr(request, "response_format", None)
    from_format = _from_response_format(response_format) if response_format is not None else None
    if request.structured_outputs is None:
        return from_format
    if from_format is not None:
        raise InvalidRequestError(
            "Send either 'response_format' or 'structured_outputs', not both.", param="structured_outputs"
        )
    return _from_structured_outputs(request.structured_outputs)


def _from_response_format(value: Mapping[str, Any]) -> AnswerFormat | None:
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return AnswerFormat(json_rule({"type": "object"}), None, "response_format")
    if kind == "json_schema":
        inner = value.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
        if not isinstance(schema, Mapping):
            raise InvalidRequestError(
                "'response_format.json_schema.schema' must be a JSON schema.", param="response_format"
            )
        return AnswerFormat(_rule(schema, "response_format"), None, "response_format")
    raise InvalidRequestError(
        f"'response_format.type' is 'text', 'json_object' or 'json_schema', not {str(kind)[:40]!r}.",
        param="response_format",
    )


def _from_structured_outputs(value: Mapping[str, Any]) -> AnswerFormat | None:
    param = "structured_outputs"
    given = [kind for kind in _KINDS if value.get(kind) not in (None, False)]
    if not given:
        raise InvalidRequestError(f"'{param}' needs one of {', '.join(_KINDS)}.", param=param)
    if len(given) > 1:
        raise InvalidRequestError(f"'{param}' takes one of {', '.join(given)}, not several.", param=param)
    (kind,) = given
    wish = value[kind]
    if kind == "json_object":
        return AnswerFormat(json_rule({"type": "object"}), None, param)
    if kind == "json":
        return AnswerFormat(_rule(_schema(wish, param), param), None, param)
    if kind == "choice":
        if not isinstance(wish, list) or not wish or not all(isinstance(text, str) and text for text in wish):
            raise InvalidRequestError(f"'{param}.choice' must be a list of texts.", param=param)
        if len(wish) > MAX_CHOICE_TEXTS:
            raise InvalidRequestError(f"'{param}.choice' may have at most {MAX_CHOICE_TEXTS} texts.", param=param)
        return AnswerFormat(choice_rule(wish), None, param)
    if not isinstance(wish, str) or not wish or len(wish) > MAX_GRAMMAR_CHARS:
        raise InvalidRequestError(f"'{param}.{kind}' must be a text of reasonable length.", param=param)
    if not wish.isascii() and wish != wish.encode(errors="replace").decode():
        raise InvalidRequestError(f"'{param}.{kind}' has half a surrogate pair in it.", param=param)
    if kind == "regex":
        return AnswerFormat(regex_rule(wish), None, param)
    return AnswerFormat(None, _lark(wish, param), param)


def _schema(wish: object, param: str) -> Mapping[str, Any]:
    if isinstance(wish, str):
        try:
            wish = json.loads(wish)
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(f"'{param}.json' is not valid JSON: {error}.", param=param) from error
    if not isinstance(wish, Mapping):
        raise InvalidRequestError(f"'{param}.json' must be a JSON schema.", param=param)
    return wish


def _rule(schema: Mapping[str, Any], param: str) -> str:
    try:
        rule = json_rule(schema)
    except RecursionError as error:
        raise InvalidRequestError(f"'{param}' cannot be enforced: the schema is too deep.", param=param) from error
    if len(rule) > MAX_GRAMMAR_CHARS:
        raise InvalidRequestError(
            f"'{param}' cannot be enforced: the schema is longer than {MAX_GRAMMAR_CHARS} characters.", param=param
        )
    if not has_finite_value(schema):
        raise InvalidRequestError(
            f"'{param}' cannot be enforced: the schema requires itself without end, so no value satisfies it.",
            param=param,
        )
    return rule


def _lark(text: str, param: str) -> str:
    """Grammars come in Lark's notation or llama.cpp's (GBNF)."""
    if "::=" not in text:
        return text
    if len(text) > _MAX_GBNF_CHARS:
        raise InvalidRequestError(
            f"'{param}.grammar' in GBNF may have at most {_MAX_GBNF_CHARS} characters; use Lark's notation.",
            param=param,
        )
    try:
        return str(gbnf_to_lark(text))
    except Exception as error:  # the converter raises whatever its parser stumbles over
        raise InvalidRequestError(f"'{param}.grammar' cannot be read: {str(error)[:300]}", param=param) from error
