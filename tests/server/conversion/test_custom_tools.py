"""Tools that take text or code: OpenAI's custom tools, and Qwen's code tools."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from model.contract.errors import InvalidRequestError
from model.contract.messages import SequenceOutput
from model.contract.sampling_params import SamplingParams
from prompts.react.grammar import tool_call_grammar
from prompts.react.parser import ReActParser
from prompts.schemas.schema import TextInput
from server.conversion.generation_request import GenerationRequest
from server.conversion.readers.chat import read_chat
from server.conversion.tools import FunctionCalling
from server.engine.client import Prompt
from server.replies.chat import ChatReply
from server.replies.chunk_reply import usage_object
from server.replies.generation import TokenUsage
from server.replies.output_processor import ChoiceProcessor
from server.wire.shapes.chat import ChatCompletionRequest
from tests.support.vocabulary import byte_tokenizer
from tests.support.wire import Wire

# mypy: disable-error-code="call-overload,arg-type,union-attr"

JsonDict = dict[str, Any]
HI = [{"role": "user", "content": "hi"}]
HINT = "Enclose the code within triple backticks (`) at the beginning and end of the code."
CODE = "```py\nprint('{}')\n```"


def custom(name: str = "calc", **format: Any) -> JsonDict:
    return {
        "type": "custom",
        "custom": {"name": name, "description": "Reckons.", **({"format": format} if format else {})},
    }


def regex(definition: str) -> JsonDict:
    return custom(type="grammar", grammar={"syntax": "regex", "definition": definition})


def read(**body: Any) -> FunctionCalling:
    return read_chat(ChatCompletionRequest.model_validate({"messages": HI, **body})).calling


def forced(name: str = "calc") -> JsonDict:
    return {"type": "custom", "custom": {"name": name}}


LARK = 'start: expr\nexpr: NUMBER "+" NUMBER\nNUMBER: /[0-9]{2}/'


@pytest.mark.parametrize(
    ("tool", "choice", "pattern"),
    [
        (regex(r"[0-9]{3}\+1"), forced(), r"\d{3}\+1"),
        (regex(r"[0-9]{3}\+1"), "required", r"\d{3}\+1"),
        (custom(type="grammar", grammar={"syntax": "lark", "definition": LARK}), forced(), r"\d\d\+\d\d"),
        # as the Responses API writes it
        ({"type": "custom", "name": "calc", "format": {"type": "grammar", "syntax": "regex", "definition": "[ab]"}},
         {"type": "custom", "name": "calc"}, "[ab]"),
    ],
)  # fmt: skip
def test_the_input_of_a_custom_tool_fits_its_grammar(wire: Wire, tool: JsonDict, choice: Any, pattern: str) -> None:
    import re

    reply = wire.choice(tools=[tool], tool_choice=choice)
    assert reply["finish_reason"] == "tool_calls"
    (call,) = reply["calls"]
    assert call["name"] == "calc" and re.fullmatch(pattern, call["arguments"])


def test_a_custom_call_as_the_sdk_sees_it(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="Qwen", messages=HI, tools=[regex("[0-9]{4}")], tool_choice=forced(), max_tokens=50
    )
    (call,) = reply.choices[0].message.tool_calls
    assert (call.type, call.custom.name, len(call.custom.input)) == ("custom", "calc", 4)
    messages = [*HI, reply.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "done"}]
    client.chat.completions.create(model="Qwen", messages=messages, tools=[regex("[0-9]{4}")], max_tokens=2)


def prompt_of(wire: Wire, **body: Any) -> str:
    tokens = wire.ok("/tokenize", {"messages": HI, **body})["tokens"]
    return str(wire.ok("/detokenize", {"tokens": tokens})["prompt"])


def test_the_model_is_told_how_the_input_is_written(wire: Wire) -> None:
    prompt = prompt_of(wire, tools=[custom()])
    line = (
        "calc: Call this tool to interact with the calc API. What is the calc API useful for? Reckons. Parameters: []"
    )
    assert f"{line} Write the input as plain text, not as JSON.\n" in prompt
    prompt = prompt_of(wire, tools=[regex("[0-9]+")])
    assert "not as JSON. It must match the regular expression: [0-9]+\n" in prompt
    function = {"name": "py", "description": "Runs code.", "parameters": [], "args_format": "code"}
    assert f"Runs code. Parameters: [] {HINT}\n" in prompt_of(wire, functions=[function])
    function["args_format"] = "json"
    assert "Parameters: [] Format the arguments as a JSON object.\n" in prompt_of(wire, functions=[function])
    del function["args_format"]
    assert "useful for? Runs code. Parameters: []\n" in prompt_of(wire, functions=[function])


def test_inputs_of_the_history_are_rendered_as_written(wire: Wire) -> None:
    text = 'a\n{"b": "\\u4e2d"}'
    call = {"id": "c", "type": "custom", "custom": {"name": "calc", "input": text}}
    said = [*HI, {"role": "assistant", "content": None, "tool_calls": [call]}]
    said.append({"role": "tool", "tool_call_id": "c", "content": "5"})
    assert f"Action: calc\nAction Input: {text}\nObservation: 5" in prompt_of(wire, messages=said, tools=[custom()])
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"b": "\\u4e2d"}'}}
    said[1] = {"role": "assistant", "tool_calls": [call]}
    assert 'Action Input: {"b": "中"}\n' in prompt_of(wire, messages=said, tools=[custom()])


@pytest.mark.parametrize(
    "function",
    [
        {"name": "py", "args_format": "code"},
        {"name": "py", "args_format": HINT},
        {"name": "py", "args_format": "此工具的输入应为Markdown代码块。"},
        {"name_for_model": "py", "description_for_model": f"Runs code. {HINT}", "parameters": []},
        {"name": "py", "description": HINT, "parameters": {"type": "object", "properties": {"code": {}}}},
    ],
)
def test_a_tool_that_asks_for_code_gets_no_json(function: JsonDict) -> None:
    calling = read(functions=[function, {"name": "f"}])
    assert calling.text_tools == {"py"} and calling.custom_tools == frozenset()
    assert read(tools=[{"type": "function", "function": function}]).text_tools == {"py"}
    inputs = [(tool.name, tool.input) for tool in calling.tools]
    assert "%json" not in tool_call_grammar(inputs, place="arguments")
    assert tool_call_grammar(inputs).count("%json") == 1


def test_other_tools_still_take_json() -> None:
    assert not read(functions=[{"name": "code_interpreter", "args_format": "json"}]).text_tools
    tools = read(tools=[custom(), custom("other", type="text")]).tools
    assert [(tool.name, tool.input) for tool in tools] == [("calc", TextInput()), ("other", TextInput())]


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        ({"type": "custom"}, "tools[0].name"),
        ({"type": "custom", "custom": 1}, "tools[0].custom"),
        (custom(type="xml"), "tools[0].custom.format"),
        (custom(type="grammar"), "tools[0].custom.format"),
        (custom(type="grammar", grammar={"syntax": "ebnf", "definition": "x"}), "tools[0].custom.format"),
        (custom(type="grammar", grammar={"syntax": "lark", "definition": ""}), "tools[0].custom.format"),
        (regex("[a\ud800]"), "tools[0].custom.format"),
        (custom(type="grammar", grammar={"syntax": "lark", "definition": 'start: "\ud800"'}), "tools[0].custom.format"),
        ({"type": "custom", "name": "calc", "format": {"type": "grammar", "syntax": "ebnf"}}, "tools[0].format"),
        ({"type": "computer"}, "tools[0].type"),
    ],
)
def test_custom_tools_that_are_none(tool: JsonDict, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read(tools=[tool])
    assert caught.value.param == param


def test_a_grammar_that_cannot_be_compiled_is_refused(wire: Wire) -> None:
    error = wire.refused(tools=[regex("(")], tool_choice=forced())
    assert "cannot be enforced" in error["message"] and error["param"] == "tools"


def test_choices_among_custom_tools() -> None:
    tools = [custom(), custom("other")]
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [forced("other")]}}
    chosen = read(tools=tools, tool_choice=allowed)
    assert chosen.names == ("other",)
    with pytest.raises(InvalidRequestError, match="names 'none'"):
        read(tools=tools, tool_choice=forced("none"))


def replied(
    text: str, *, is_legacy: bool, custom_tools: frozenset[str] = frozenset()
) -> tuple[JsonDict, list[JsonDict]]:
    """The reply to a model that says a text: whole, and in chunks."""
    tokenizer = byte_tokenizer()
    prompts = (Prompt([1], SamplingParams(max_tokens=999)),)
    request = GenerationRequest(prompts=prompts, custom_tools=custom_tools)
    processor = ChoiceProcessor(0, tokenizer, parser=ReActParser("", ["py"], ["py"]))
    reply = ChatReply(request, "m", tokenizer, is_legacy=is_legacy, speaks_functions=is_legacy)
    chunks = []
    for number, byte in enumerate(data := text.encode()):
        if processor.finished:
            break
        reason = "stop" if number == len(data) - 1 else None
        chunks += list(reply.chunks(processor.push(SequenceOutput(1, [byte], reason))))
    for chunk in chunks:
        reply.add_chunk(chunk)
    (choice,) = reply.result(usage_object(TokenUsage(0, 0, 0)))["choices"]
    return choice, [chunk["choices"][0]["delta"] for chunk in chunks]


SAID = f"Thought: I run it.\nAction: py\nAction Input: {CODE}\nObservation: made up"


def test_code_reaches_a_legacy_client_as_written() -> None:
    choice, deltas = replied(SAID, is_legacy=True)
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == {"name": "py", "arguments": CODE}
    assert choice["message"]["content"] == "I run it."
    assert "".join(delta["function_call"]["arguments"] for delta in deltas if "function_call" in delta) == CODE


def test_code_reaches_a_client_of_functions_and_of_custom_tools() -> None:
    choice, _ = replied(SAID, is_legacy=False)
    (call,) = choice["message"]["tool_calls"]
    assert (call["type"], call["function"]) == ("function", {"name": "py", "arguments": CODE})
    choice, deltas = replied(SAID, is_legacy=False, custom_tools=frozenset({"py"}))
    (call,) = choice["message"]["tool_calls"]
    assert (call["type"], call["custom"]) == ("custom", {"name": "py", "input": CODE})
    pieces = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert pieces[0]["custom"] == {"name": "py", "input": ""} and pieces[0]["id"].startswith("call_")
    assert "".join(piece["custom"]["input"] for piece in pieces) == CODE
    assert not any("function" in piece for piece in pieces)


@pytest.mark.parametrize(
    ("text", "content"), [("Hello!", "Hello!"), ("", ""), ("Action: py\nAction Input: x", ""), (SAID, "I run it.")]
)
def test_legacy_messages_have_both_fields_always(text: str, content: str) -> None:
    choice, _ = replied(text or " ", is_legacy=True)
    assert choice["message"]["content"].strip() == content
    assert json.dumps(choice["message"]).count("function_call") == 1
    assert (choice["message"]["function_call"] is None) == ("Action" not in text)
    newer, _ = replied(text or " ", is_legacy=False)
    assert "function_call" not in newer["message"]
