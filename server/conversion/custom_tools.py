"""OpenAI's custom tools: their input is text, free or held to a grammar, and no JSON.

The model is told about one as about any other tool, with a sentence on how its input is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.contract.errors import InvalidRequestError
from model.contract.grammar_compiler import MAX_GRAMMAR_CHARS
from prompts.schemas.schema import TextInput, lark_rule, regex_rule

_HOW = "Write the input as plain text, not as JSON."


def described_custom(tool: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Returns a custom tool described as a function, for the prompt.

    Args:
        tool: {"type": "custom", "custom": {name, description, format}}, or with these fields at the top, as the
            Responses API has it.
        index: among the tools.

    Raises:
        InvalidRequestError: it is malformed.
    """
    custom = _custom(tool, index)
    grammar = _grammar(custom, index)
    how = _HOW
    if grammar is not None:
        syntax, definition = grammar
        kind = "the regular expression" if syntax == "regex" else "the Lark grammar"
        how = f"{_HOW} It must match {kind}: {definition}"
    return {
        "name": custom.get("name"),
        "description": custom.get("description"),
        "parameters": [],
        "args_format": how,
    }


def read_custom_input(tool: Mapping[str, Any], index: int) -> TextInput:
    """Returns what the input of a custom tool is held to.

    Raises:
        InvalidRequestError: its format is malformed.
    """
    grammar = _grammar(_custom(tool, index), index)
    if grammar is None:
        return TextInput()
    syntax, definition = grammar
    return TextInput(regex_rule(definition) if syntax == "regex" else lark_rule(definition))


def _custom(tool: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    custom = tool.get("custom", tool)
    if not isinstance(custom, Mapping):
        raise InvalidRequestError(f"'tools[{index}].custom' must be an object.", param=f"tools[{index}].custom")
    return custom


def _grammar(custom: Mapping[str, Any], index: int) -> tuple[str, str] | None:
    """Returns syntax and definition of the grammar an input is held to; None is free text."""
    param = f"tools[{index}].custom.format"
    custom_format = custom.get("format")
    if custom_format is None:
        return None
    kind = custom_format.get("type") if isinstance(custom_format, Mapping) else None
    if not isinstance(custom_format, Mapping) or kind not in ("text", "grammar"):
        raise InvalidRequestError(f"'{param}.type' is 'text' or 'grammar', not {str(kind)[:40]!r}.", param=param)
    if kind == "text":
        return None
    grammar = custom_format.get("grammar", custom_format)
    syntax, definition = (
        (grammar.get("syntax"), grammar.get("definition")) if isinstance(grammar, Mapping) else (None, None)
    )
    if syntax not in ("lark", "regex"):
        raise InvalidRequestError(
            f"'{param}.grammar.syntax' is 'lark' or 'regex', not {str(syntax)[:40]!r}.", param=param
        )
    if not isinstance(definition, str) or not definition or len(definition) > MAX_GRAMMAR_CHARS:
        raise InvalidRequestError(f"'{param}.grammar.definition' must be a text of reasonable length.", param=param)
    if definition != definition.encode(errors="replace").decode():
        raise InvalidRequestError(f"'{param}.grammar.definition' has half a surrogate pair in it.", param=param)
    return syntax, definition
