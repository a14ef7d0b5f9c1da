"""prompts/schemas: grammars that say what they should, walked with the library itself."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from model.contract.grammar_compiler import GrammarError, compile_grammar, make_ll_tokenizer
from model.contract.tokenizer import Tokenizer
from prompts.react.grammar import tool_call_grammar
from prompts.react.line_format import Place
from prompts.schemas.check import has_finite_value
from prompts.schemas.schema import (
    arguments_grammar,
    arguments_schema,
    choice_rule,
    json_rule,
    regex_rule,
    whole_grammar,
)

TOKENIZER = Tokenizer({bytes([i]): i for i in range(256)})
JsonDict = dict[str, Any]
CITY: JsonDict = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [("weather", CITY), ("clock", arguments_schema(None))]
CALL = 'Action: weather\nAction Input: {"city": "Paris"}'


@pytest.fixture(scope="module")
def ll_tokenizer() -> LLTokenizer:
    return make_ll_tokenizer(TOKENIZER, TOKENIZER.num_tokens)


def walk(ll_tokenizer: LLTokenizer, grammar: str, text: str) -> LLMatcher | None:
    """The matcher after a text, or None if it does not allow it."""
    matcher = compile_grammar(ll_tokenizer, grammar)
    for byte in text.encode():
        mask = matcher.compute_bitmask()
        if not mask[byte // 8] >> byte % 8 & 1:
            return None
        assert matcher.consume_token(byte)
    return matcher


def allows(ll_tokenizer: LLTokenizer, grammar: str, text: str) -> bool:
    """Whether a text may be a whole reply."""
    matcher = walk(ll_tokenizer, grammar, text)
    return matcher is not None and bool(matcher.is_accepting())


def begins(ll_tokenizer: LLTokenizer, grammar: str, text: str) -> bool:
    """Whether a reply may begin so."""
    return walk(ll_tokenizer, grammar, text) is not None


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("turn", f"Thought: hm\nsecond line\n{CALL}"),
        ("turn", CALL),
        ("turn", "Thought: x\nAction: clock\nAction Input: {}"),
        ("turn", "plain words\nof any kind"),
        ("turn", "Thought: x\nFinal Answer: y\nmore"),
        ("turn", "Action Input is not an Action: here"),
        ("turn", f" \n{CALL}"),
        ("turn", "Minutes\nAction: Bob calls.\nAction: Ann writes."),
        ("turn", "Minutes\nThought: x\nAction: weather\nAction Input: none"),
        ("turn", "Action: nothing\nAction: weather\nAction Input: none"),
        ("turn", "Action: weather \nAction Input: none"),
        ("turn", "Thought: x\nFinal Answer: y\nAction: z\nThought: z\nFinal Answer: z"),
        ("turn", "Thought: x\nmy Action: y"),
        ("turn", "Thought: Action: y"),
        ("turn", "Thought: x"),
        ("turn", ""),
        ("thought", f" hm\n{CALL}"),
        ("thought", " I know.\nFinal Answer: y\nAction: z"),
        ("thought", " I know.\nFinal Answer: y"),
        ("action", ' weather\nAction Input: {"city":"x"}'),
        ("action", " clock\nAction Input: {}"),
    ],
)
def test_replies_that_are_allowed(ll_tokenizer: LLTokenizer, place: Place, text: str) -> None:
    assert allows(ll_tokenizer, tool_call_grammar(TOOLS, place=place), text)


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("turn", "Thought: x\nAction: nothing"),
        ("turn", " Thought: x\nAction: nothing"),
        ("turn", "Action: weather\nAction Input: [1]"),
        ("turn", "Thought: x\nAction: weather\nAction Input: [1]"),
        ("turn", 'Thought: x\nAction: weather\nAction Input: {"town"'),
        ("turn", f"{CALL}\n"),
        ("turn", "Thought: x\nAction: clock\nAction Input: {\n"),
        ("action", " weather\nAction Input: {}"),
        ("action", "weather"),
    ],
)
def test_replies_that_are_not(ll_tokenizer: LLTokenizer, place: Place, text: str) -> None:
    assert not begins(ll_tokenizer, tool_call_grammar(TOOLS, place=place), text)


def test_the_end_of_a_call_is_the_end_of_the_reply(ll_tokenizer: LLTokenizer) -> None:
    matcher = walk(ll_tokenizer, tool_call_grammar(TOOLS), f"Thought: t\n{CALL}")
    assert matcher is not None
    assert matcher.is_stopped()


def test_a_named_tool_leaves_only_its_arguments(ll_tokenizer: LLTokenizer) -> None:
    grammar = tool_call_grammar(TOOLS[:1], place="arguments")
    assert grammar == arguments_grammar(CITY)
    assert allows(ll_tokenizer, grammar, ' {"city":"x"}')
    assert not begins(ll_tokenizer, grammar, " {}")


def test_answers_of_a_form_and_calls(ll_tokenizer: LLTokenizer) -> None:
    grammar = tool_call_grammar(TOOLS, answer=choice_rule(["yes", "no"]))
    for text in ("yes", "Thought: t\nFinal Answer: no", f"Thought: t\n{CALL}", CALL):
        assert allows(ll_tokenizer, grammar, text)
    for text in ("maybe", "plain", "Thought: t\nFinal Answer: maybe", "Final Answer: yes"):
        assert not begins(ll_tokenizer, grammar, text)
    after = tool_call_grammar(TOOLS, place="thought", answer=choice_rule(["yes"]))
    assert allows(ll_tokenizer, after, " so\nFinal Answer: yes")
    assert not allows(ll_tokenizer, after, "yes")


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a/b", "城市", "🙂", "a b", "a(b|c)*", "%json"])
def test_names_are_written_as_they_are(ll_tokenizer: LLTokenizer, name: str) -> None:
    grammar = tool_call_grammar([(name, CITY)], place="action")
    assert allows(ll_tokenizer, grammar, f' {name}\nAction Input: {{"city": ""}}')


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("a/b", "a/b"),
        (r"a\/b", "a/b"),
        (r"\\/", "\\/"),
        ("a\nb", "a\nb"),
        ("a\\\nb", "a\nb"),
        (r"\d+", "12"),
        ("[/]", "/"),
    ],
)
def test_patterns(ll_tokenizer: LLTokenizer, pattern: str, text: str) -> None:
    assert allows(ll_tokenizer, whole_grammar(regex_rule(pattern)), text)
    assert not begins(ll_tokenizer, whole_grammar(regex_rule(pattern)), "x")


def test_json_is_on_one_line(ll_tokenizer: LLTokenizer) -> None:
    grammar = whole_grammar(json_rule({"type": "array", "items": {"type": "integer"}}))
    for text in ("[1,2]", "[1, 2]", "[]"):
        assert allows(ll_tokenizer, grammar, text)
    for text in ("[ 1", "[1 ", "[\n", "[1,  2"):
        assert not begins(ll_tokenizer, grammar, text)


def test_only_a_tool_forgives_what_cannot_be_enforced(ll_tokenizer: LLTokenizer) -> None:
    schema = {"type": "string", "not": {"enum": ["x"]}}
    with pytest.raises(GrammarError, match="not"):
        compile_grammar(ll_tokenizer, whole_grammar(json_rule(schema)))
    compile_grammar(ll_tokenizer, whole_grammar(json_rule(schema, is_lenient=True)))


def test_parameters_in_either_style() -> None:
    assert arguments_schema(CITY) == CITY
    assert arguments_schema({}) == {"type": "object"}
    assert arguments_schema({"properties": {}}) == {"type": "object", "properties": {}, "additionalProperties": False}
    assert arguments_schema({"$ref": "#/x"}) == {"$ref": "#/x"}
    assert arguments_schema(None)["additionalProperties"] is False
    qwen = [{"name": "q", "required": True, "schema": {"type": "string"}}, {"name": "n", "schema": None}]
    assert arguments_schema(qwen) == {
        "type": "object",
        "properties": {"q": {"type": "string"}, "n": {}},
        "required": ["q"],
        "additionalProperties": False,
    }
    for wrong in ("x", 5, [5], [{"schema": {}}]):
        with pytest.raises(ValueError, match="parameters"):
            arguments_schema(wrong)


def test_what_lists_its_properties_has_no_others() -> None:
    inner: JsonDict = {"type": "object", "properties": {"b": {}}}
    schema: JsonDict = {"type": "object", "properties": {"a": inner, "l": {"type": "array", "items": inner}}}
    closed = arguments_schema(schema)
    for part in (closed, closed["properties"]["a"], closed["properties"]["l"]["items"]):
        assert part["additionalProperties"] is False
    assert "additionalProperties" not in schema
    for open_one in (
        {**inner, "additionalProperties": True},
        {**inner, "anyOf": [{}]},
        {**inner, "required": ["b", "c"]},
        {"type": "object"},
    ):
        assert arguments_schema(open_one) == open_one


# -- schemas without any finite value


def node(**more: Any) -> JsonDict:
    return {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"], **more}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        node(),
        {"allOf": [node()]} | {"type": "object", "properties": {"a": {"$ref": "#/allOf/0"}}, "required": ["a"]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {"type": "array", "prefixItems": [{"type": "null"}, {"$ref": "#"}], "minItems": 2},
        {"anyOf": [{"$ref": "#"}, node()]},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        {"type": "object", "properties": {"a/b~c": {"$ref": "#/properties/a~1b~0c"}}, "required": ["a/b~c"]},
    ],
)
def test_endless_schemas(schema: JsonDict) -> None:
    assert not has_finite_value(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {},
        CITY,
        {**node(), "required": []},
        {**node(), "type": ["object", "null"]},
        {"anyOf": [{"type": "null"}, node()]},
        {"type": "array", "items": {"$ref": "#"}},
        {"type": "array", "prefixItems": [{"type": "null"}], "items": {"$ref": "#"}, "minItems": 1},
        {"type": ["array", "object"], "items": {"$ref": "#"}, "minItems": 1},
        {"$ref": "#/$defs/leaf", "$defs": {"leaf": {"type": "string"}}},
        {"$ref": "http://elsewhere"},
        {"$ref": "#/nowhere"},
        {"$ref": 5},
        {"type": "object", "properties": [1], "required": 5},
        {"type": "banana"},
        {"type": "object", "required": ["a"]},
        {"enum": [1], "properties": {"enum": {"$ref": "#"}}},
    ],
)
def test_schemas_with_an_end(schema: JsonDict) -> None:
    assert has_finite_value(schema)


def test_a_long_chain_of_definitions_is_followed_in_time() -> None:
    chain: JsonDict = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(300)}
    chain["d300"] = {"type": "null"}
    assert has_finite_value({"$ref": "#/$defs/d0", "$defs": chain})
    backwards = dict(reversed(chain.items()))
    assert has_finite_value(json.loads(json.dumps({"$ref": "#/$defs/d0", "$defs": backwards})))


def test_the_work_grows_with_the_length_of_a_chain_and_not_with_its_square() -> None:
    def lines(length: int) -> int:
        chain: JsonDict = {
            f"d{i}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}, "required": ["a"]}
            for i in range(length)
        }
        schema = {"$ref": "#/$defs/d0", "$defs": {**chain, f"d{length}": {"type": "null"}}}
        count = 0

        def trace(frame: Any, event: str, arg: Any) -> Any:
            nonlocal count
            count += 1
            return trace

        sys.settrace(trace)
        try:
            assert has_finite_value(schema)
        finally:
            sys.settrace(None)
        return count

    assert lines(400) < 5 * lines(100)
