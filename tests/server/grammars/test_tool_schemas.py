"""Tools whose schemas cannot be enforced as they are: which keywords are left out, and which tools are refused."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from model.contract.errors import InvalidRequestError
from prompts.schemas.check import has_finite_value
from prompts.schemas.faults import FORMATS, UNENFORCED, constraints, examine, patterns
from prompts.schemas.schema import arguments_schema
from prompts.schemas.subschemas import find, pointer, without
from server.conversion.readers.chat import read_chat
from server.grammars.schema_enforcement import EnforcedSchema, SchemaEnforcer
from server.off_loop import OffLoop
from server.wire.shapes.chat import ChatCompletionRequest
from tests.support.conversion import ENGINE, chat, converter
from tests.support.grammars import GRAMMARS
from tests.support.hypothesis_settings import BATCHES
from tests.support.paths import ROOT
from tests.support.wire import Wire

JsonDict = dict[str, Any]
LOOKAHEAD = r"^P(?!$)(\d+Y)?(T(?=\d)(\d+H)?)?$"  # the shape of what zod 4 writes for an ISO duration
# A keyword that cannot be enforced, what of the schema around it still is, and a word of the reason.
LOOSENED: dict[str, tuple[JsonDict, JsonDict, str]] = {
    "lookahead": ({"type": "string", "pattern": LOOKAHEAD}, {"type": "string"}, "look-around"),
    "word boundary": ({"type": "string", "pattern": r"\bx\b"}, {"type": "string"}, "lookaround"),
    "back reference": ({"type": "string", "pattern": r"(a)\1"}, {"type": "string"}, "backreferences"),
    "no pattern": ({"type": "string", "pattern": "("}, {"type": "string"}, "unclosed"),
    "float": ({"type": "float"}, {"type": "number"}, "'float'"),
    "int": ({"type": "int"}, {"type": "integer"}, "'int'"),
    "str": ({"type": "str", "maxLength": 3}, {"type": "string", "maxLength": 3}, "'str'"),
    "dict": ({"type": "dict"}, {"type": "object"}, "'dict'"),
    "gemini": ({"type": ["STRING", "NoneType"]}, {"type": ["string", "null"]}, "'STRING'"),
    "any": ({"type": "any", "enum": [1, 2]}, {"enum": [1, 2]}, "'any'"),
    "type of no kind": ({"type": 5}, {}, "must be one of"),
    "nowhere": ({"$ref": "#/$defs/none"}, {}, "no schema at"),
    "no name": ({"$ref": "#none"}, {}, "no place"),
    "elsewhere": ({"$ref": "http://127.0.0.1:1/x.json"}, {}, "nothing is fetched"),
    "enum null": ({"type": "string", "enum": None}, {"type": "string"}, "list of values"),
    "empty enum": ({"enum": []}, {}, "list of values"),
    "required null": ({"type": "object", "required": None}, {"type": "object"}, "list of names"),
    "required true": ({"type": "string", "required": True}, {"type": "string"}, "list of names"),
    "properties of no kind": ({"type": "object", "properties": [1]}, {"type": "object"}, "an object"),
    "no schema": (
        {"type": "object", "properties": {"a": "string"}},
        {"type": "object", "properties": {"a": {}}},
        "be a",
    ),
    "not a count": ({"type": "string", "minLength": "1"}, {"type": "string"}, "whole number"),
    "anyOf null": ({"anyOf": None, "type": "null"}, {"type": "null"}, "list of schemas"),
    "unique": (
        {"type": "array", "items": {"type": "null"}, "uniqueItems": True},
        {"type": "array", "items": {"type": "null"}},
        "not enforced",
    ),
    "format": ({"type": "string", "format": "int32"}, {"type": "string"}, "'int32'"),
    "optional properties": (
        {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a"], "minProperties": 1},
        {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a"]},
        "all properties are required",
    ),
    "values of another type": ({"type": "string", "enum": [1, 2]}, {"enum": [1, 2]}, "nsatisfiable"),
    "contradiction": (
        {"type": "integer", "minimum": 5, "maximum": 3},
        {"type": "integer", "maximum": 3},
        "nsatisfiable",
    ),
    "key pattern": (
        {"type": "object", "patternProperties": {"^(?=a)": {}, "^b$": {"type": "null"}}},
        {"type": "object", "patternProperties": {"^b$": {"type": "null"}}},
        "look-around",
    ),
}


def parameters(schema: JsonDict) -> JsonDict:
    properties = {"ok": {"enum": [1, 2]}, "x": schema}
    return {"type": "object", "properties": properties, "required": ["ok", "x"], "additionalProperties": False}


async def loosened(schema: JsonDict, name: str = "f") -> Mapping[str, Any]:
    tool = EnforcedSchema("tools[0].function.parameters", schema, is_strict=False, name=name)
    await SchemaEnforcer(GRAMMARS, OffLoop()).enforce([tool], param="tools")
    return tool.schema


@pytest.mark.parametrize("kind", LOOSENED)
async def test_a_tool_loses_the_one_keyword_and_keeps_the_rest(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    given, kept, word = LOOSENED[kind]
    assert await loosened(parameters(given), kind) == parameters(kept)
    (record,) = caplog.records[:1]
    assert record.levelno == logging.WARNING
    assert f"tool {kind}: parameters.properties.x" in record.getMessage()
    assert word in record.getMessage()


@pytest.mark.parametrize("kind", LOOSENED)
async def test_a_strict_tool_and_a_format_are_refused_with_path_and_reason(kind: str) -> None:
    schema, _, word = parameters(LOOSENED[kind][0]), *LOOSENED[kind][1:]
    function = {"name": "f", "strict": True, "parameters": schema}
    tools = [{"type": "function", "function": {"name": "g"}}, {"type": "function", "function": function}]
    for body, place in (
        ({"tools": tools, "truncation": "auto"}, "tools[1].function.parameters"),
        ({"functions": [function]}, "functions[0].parameters"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}},
            "response_format.json_schema",
        ),
        ({"structured_outputs": {"json": schema}}, "structured_outputs.json"),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            await refused_before_the_engine(body)
        assert caught.value.param == next(iter(body))
        assert f"'{place}" in caught.value.message
        assert ".properties.x" in caught.value.message
        assert word in caught.value.message


async def refused_before_the_engine(body: JsonDict) -> None:
    """Reads a request for a context that is long enough for tools."""
    request = ChatCompletionRequest.model_validate({"messages": [{"role": "user", "content": "hi"}], **body})
    await converter().chat(read_chat(request), replace(ENGINE, max_model_len=20_000))


async def test_the_whole_reason_is_given() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await chat(structured_outputs={"json": {"type": "string", "pattern": "a(?=b)"}})
    assert caught.value.message == (
        "'structured_outputs.json.pattern' cannot be enforced: regex parse error: a(?=b) error: look-around, including"
        " look-ahead and look-behind, is not supported."
    )
    with pytest.raises(InvalidRequestError, match="look-around"):
        await chat(structured_outputs={"regex": "a(?=b)"})


async def test_all_faults_of_all_tools_in_one_request(caplog: pytest.LogCaptureFixture) -> None:
    enforcer = SchemaEnforcer(GRAMMARS, OffLoop())
    for _ in range(2):  # and it is logged once
        tools = [
            EnforcedSchema(f"tools[{number}]", parameters(given), is_strict=False, name=kind)
            for number, (kind, (given, _, _)) in enumerate(LOOSENED.items())
        ]
        every = {f"p{number}": given for number, (given, _, _) in enumerate(LOOSENED.values())}
        tools.append(EnforcedSchema("all", {"type": "object", "properties": every}, is_strict=False, name="all"))
        await enforcer.enforce(tools, param="tools")
        *ones, together = tools
        assert [tool.schema for tool in ones] == [parameters(kept) for _, kept, _ in LOOSENED.values()]
        # An optional property may have no value: what contradicts itself is then nothing to leave out.
        kept_together = {
            f"p{number}": given if word == "nsatisfiable" else kept
            for number, (given, kept, word) in enumerate(LOOSENED.values())
        }
        assert together.schema == {"type": "object", "properties": kept_together}
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(set(lines)) == 17
    num_faults = sum(len(tool.faults) for tool in tools)
    assert f" {num_faults - 16} more keywords" in lines[-1]


async def test_where_no_keyword_alone_is_at_fault_any_object_will_do(caplog: pytest.LogCaptureFixture) -> None:
    impossible = {"type": "integer", "minimum": 5, "maximum": 3}
    twice = {"type": "object", "properties": {"a": impossible, "b": impossible}, "required": ["a", "b"]}
    assert await loosened({**twice, "allOf": [twice]}) == {"type": "object"}
    assert "tool f: parameters cannot be enforced as it is: " in caplog.text


def test_names_of_places_become_pointers() -> None:
    for named in ({"$anchor": "it"}, {"$id": "#it"}, {"id": "#it"}):
        schema = {
            "type": "object",
            "properties": {"a": {"$ref": "#it"}, "b": {"$ref": "#/$defs/x~1y"}},
            "required": ["a"],
            "$defs": {"x/y": {"type": "integer", **named}},
        }
        examined, faults = examine(schema)
        assert faults == []
        assert examined["properties"]["a"] == examined["properties"]["b"] == {"$ref": "#/$defs/x~1y"}


@pytest.mark.parametrize("named", [{"$anchor": "node"}, {"$id": "#node"}])
def test_a_reference_by_name_is_enforced(wire: Wire, named: JsonDict) -> None:
    """It was taken for the whole schema, which then required itself without end."""
    node = {"type": "object", "properties": {"v": {"enum": [1, 2]}}, "required": ["v"], "additionalProperties": False}
    schema = {
        "type": "object",
        "properties": {"root": {"$ref": "#node"}},
        "required": ["root"],
        "additionalProperties": False,
        "definitions": {"node": {**node, **named}},
    }
    choice = wire.choice(response_format={"type": "json_schema", "json_schema": {"schema": schema, "strict": True}})
    assert json.loads(choice["content"])["root"]["v"] in (1, 2)
    endless = {**schema, "definitions": {"node": {**node, **named, "properties": {"v": {"$ref": "#node"}}}}}
    refusal = wire.refused(response_format={"type": "json_schema", "json_schema": {"schema": endless}})
    assert "without end" in refusal["message"]


def test_a_request_with_a_broken_tool_calls_the_others_and_it(wire: Wire) -> None:
    broken = {"name": "wait", "parameters": parameters({"type": "string", "pattern": LOOKAHEAD, "maxLength": 3})}
    sound = {"name": "count", "parameters": parameters({"type": "boolean"})}
    tools = [{"type": "function", "function": function} for function in (broken, sound)]
    for function in (broken, sound):
        named = {"type": "function", "function": {"name": function["name"]}}
        (call,) = wire.choice(tools=tools, tool_choice=named, max_tokens=200)["calls"]
        schema = json.loads(json.dumps(function["parameters"]).replace(json.dumps(LOOKAHEAD), '""'))
        jsonschema.validate(json.loads(call["arguments"]), schema)


@pytest.mark.parametrize("keyword", UNENFORCED)
async def test_the_keywords_without_effect_are_those_the_compiler_does_not_know(keyword: str) -> None:
    (verdict,) = await GRAMMARS.verdicts([f'start: %json {{"{keyword}": {{}}}}'])
    assert f'Unimplemented keys: ["{keyword}"]' in (verdict[0] or "")


@pytest.mark.parametrize("name", [*sorted(FORMATS), "iri", "regex", "json-pointer", "int64", "binary"])
async def test_the_formats_are_those_the_compiler_knows(name: str) -> None:
    (verdict,) = await GRAMMARS.verdicts([f'start: %json {{"type": "string", "format": "{name}"}}'])
    assert (verdict[0] is None) == (name in FORMATS)


def test_values_that_demand_nothing_are_no_faults() -> None:
    harmless = {"uniqueItems": False, "unevaluatedProperties": True, "dependentRequired": {}, "propertyNames": {}}
    assert examine({"type": "array", **harmless, "minItems": 2.0}) == ({"type": "array", "minItems": 2}, [])
    data = {"enum": [{"$ref": "#/no", "type": "float"}], "const": {"not": 1}}
    said = {"description": "\ud800", "default": {"pattern": "("}, "examples": [{"not": 1}], "nullable": 5, "id": "^"}
    assert examine({**data, **said}) == (data, [])


async def test_what_is_said_about_a_schema_does_not_disturb_it() -> None:
    said = {"description": "half a pair: \ud800", "$schema": "mine", "$id": "^no uri$", "$comment": {"a": 1}}
    assert await loosened({**said, **parameters({"type": "null", **said})}) == parameters({"type": "null"})
    draft = "https://json-schema.org/draft/2020-12/schema"
    by_id = {"$schema": draft, "$ref": "http://x/a", "$defs": {"a": {"$id": "http://x/a", "type": "null"}}}
    assert await loosened(by_id) == by_id


def test_the_readme_names_what_is_not_enforced() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [keyword for keyword in (*UNENFORCED, *FORMATS) if f"`{keyword}`" not in readme] == []


def test_paths_lead_to_what_they_name() -> None:
    schema = parameters({"anyOf": [{"type": "string", "pattern": "a"}, {"patternProperties": {"b/c~": {"const": 1}}}]})
    places = [*constraints(schema), *(path for path, _ in patterns(schema))]
    assert {path[-1] for path in places} >= {"type", "required", "pattern", "const", "b/c~", "anyOf"}
    for path in places:
        value = find(schema, pointer(path))
        assert find(without(schema, path), pointer(path)) is not value
        assert find(without(schema, path), pointer(path[:-1])) == {
            key: kept for key, kept in find(schema, pointer(path[:-1])).items() if key != path[-1]
        }


KEYWORDS = st.sampled_from(
    ["type", "enum", "const", "pattern", "format", "required", "properties", "additionalProperties", "items", "anyOf",
     "$ref", "allOf", "minLength", "minimum", "multipleOf", "maxItems", "minProperties", "patternProperties", "$defs",
     "not", "uniqueItems", "$anchor", "$id", "$schema", "default", "description", "x-guidance"]
)  # fmt: skip
VALUES = st.sampled_from(
    [None, True, False, 0, -1, 2.0, 2.5, "", "string", "float", "#", "#/properties/a", "#it", "http://x/y", "(", "^a$",
     "int32", 10**30, "\ud800", [], {}, ["a"], ["string", "null"], {"a": {"type": "null"}}, [{"type": "null"}]]
)  # fmt: skip
SCHEMAS = st.recursive(
    st.dictionaries(KEYWORDS, VALUES, max_size=4),
    lambda children: st.dictionaries(
        KEYWORDS,
        st.one_of(VALUES, children, st.lists(children, max_size=2), st.dictionaries(st.sampled_from("ab"), children)),
        max_size=5,
    ),
    max_leaves=6,
)


@settings(BATCHES, max_examples=8)
@given(schemas=st.lists(SCHEMAS, min_size=40, max_size=40))
def test_no_schema_of_a_tool_refuses_its_request(schemas: list[JsonDict]) -> None:
    async def run() -> None:
        sent = [schema for schema in map(arguments_schema, schemas) if has_finite_value(schema)]
        tools = [EnforcedSchema("parameters", schema, is_strict=False, name="f") for schema in sent]
        await SchemaEnforcer(GRAMMARS, OffLoop()).enforce(tools, param="tools")
        verdicts = await GRAMMARS.verdicts([tool.grammar() for tool in tools])
        assert [why for why, _ in verdicts if why is not None] == []

    asyncio.run(run())


def test_deep_schemas_are_cut_off() -> None:
    schema: JsonDict = {"type": "string"}
    for _ in range(300):
        schema = {"type": "object", "properties": {"a": schema}}
    examined, (fault,) = examine(schema)
    assert "deeper" in fault.reason
    assert find(examined, pointer(fault.path)) == {}
