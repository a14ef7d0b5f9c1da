"""Nobody gets a free reply where a constrained one was asked for: served under its other name, or refused by name."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from model.contract.errors import InvalidRequestError
from server.conversion.readers.unsupported import UnknownFields, refuse_unserved
from server.wire.shapes.chat import ChatCompletionRequest
from server.wire.shapes.completions import CompletionRequest
from server.wire.shapes.generation import RequestBody
from server.wire.shapes.messages import CountTokensRequest, MessagesRequest
from server.wire.shapes.responses import ResponsesRequest
from tests.support.conversion import chat, completion

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
JSON = {"structured_outputs": {"json": SCHEMA}}
REGEX = {"structured_outputs": {"regex": "a|b"}}
GRAMMAR = {"structured_outputs": {"grammar": 'root ::= "a" | "b"'}}
TEXT = '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'


@pytest.mark.parametrize("ask", [chat, completion])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"guided_json": SCHEMA}, JSON),
        ({"guided_json": TEXT}, JSON),
        ({"json_schema": SCHEMA}, JSON),
        ({"json_schema": TEXT, "regex": None, "grammar": ""}, JSON),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, JSON),
        ({"response_format": {"type": "json_object", "value": SCHEMA}}, JSON),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, JSON),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}, JSON),
        ({"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}),
        ({"guided_regex": "a|b"}, REGEX),
        ({"regex": "a|b", "response_format": {"type": "text"}}, REGEX),
        ({"guided_choice": ["a", "b"]}, {"structured_outputs": {"choice": ["a", "b"]}}),
        ({"guided_grammar": 'root ::= "a" | "b"'}, GRAMMAR),
        ({"grammar": 'root ::= "a" | "b"'}, GRAMMAR),
        ({"ebnf": 'root ::= "a" | "b"'}, GRAMMAR),
    ],
)
async def test_peers_names_of_a_form_mean_ours(ask: Any, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    asked = (await ask(**theirs)).prompts[0].sampling
    assert asked.grammar is not None
    assert asked == (await ask(**ours)).prompts[0].sampling


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"guided_json": "{"}, "guided_json"),
        ({"json_schema": "5"}, "json_schema"),
        ({"guided_choice": []}, "guided_choice"),
        ({"regex": "(a"}, "regex"),
        ({"ebnf": "root ::= ]["}, "ebnf"),
        ({"guided_regex": "a", "grammar": 'root ::= "a"'}, "grammar"),
        ({"guided_json": SCHEMA, "response_format": {"type": "json_object"}}, "guided_json"),
        ({"response_format": {"type": "json_object", "schema": 5}}, "response_format"),
        ({"response_format": {"type": "grammar", "grammar": "x"}}, "response_format"),
        ({"structured_outputs": {"regex": "a", "whitespace_pattern": " "}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs"),
    ],
)
@pytest.mark.parametrize("ask", [chat, completion])
async def test_forms_that_make_no_sense_name_the_field_that_was_sent(
    ask: Any, body: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await ask(**body)
    assert caught.value.param == param
    assert param in caught.value.message


UNSERVED: dict[str, Any] = {
    "bad_words": ["x"],
    "allowed_token_ids": [1],
    "use_beam_search": True,
    "num_beams": 4,
    "length_penalty": 0.5,
    "logits_processors": ["x"],
    "truncate_prompt_tokens": 5,
    "structural_tag": {"x": 1},
    "guided_whitespace_pattern": " ",
    "stop_regex": "a+",
    "format": "json",
    "chat_template": "{{ x }}",
    "documents": [{"text": "x"}],
    "max_new_tokens": 5,
    "n_predict": 5,
    "min_new_tokens": 5,
    "stop_words": ["x"],
    "repeat_penalty": 1.2,
    "typical_p": 0.5,
    "mirostat": 2,
}


@pytest.mark.parametrize("ask", [chat, completion])
@pytest.mark.parametrize("name", UNSERVED)
async def test_constraints_that_are_not_served_are_refused_by_name(ask: Any, name: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"'{name}' is not served") as caught:
        await ask(**{name: UNSERVED[name]})
    assert caught.value.param == name


@pytest.mark.parametrize(
    ("ask", "body"),
    [
        (chat, {"echo": True}),
        (chat, {"best_of": 3}),
        (completion, {"messages": [{"role": "user", "content": "x"}]}),
        (completion, {"tools": [{"type": "function", "function": {"name": "f"}}]}),
    ],
)
async def test_what_belongs_to_the_other_route_is_refused(ask: Any, body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await ask(**body)
    assert caught.value.param == next(iter(body))


async def test_a_prompt_without_a_turn_to_write_in_is_refused() -> None:
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "so"}]
    for body in ({}, {"messages": said, "continue_final_message": False}):
        with pytest.raises(InvalidRequestError) as caught:
            await chat(add_generation_prompt=False, **body)
        assert caught.value.param == "add_generation_prompt"
    closed = {"add_generation_prompt": False}
    for body in ({}, closed, {**closed, "continue_final_message": True}):
        assert await chat(messages=said, **body) == await chat(messages=said)
    assert await chat(add_generation_prompt=True) == await chat()


NEUTRAL: dict[str, Any] = {
    "bad_words": [],
    "allowed_token_ids": None,
    "use_beam_search": False,
    "num_beams": 1,
    "length_penalty": 1.0,
    "chat_template": "",
    "n_predict": -1,
    "repeat_penalty": 1.0,
    "typical_p": 1,
    "mirostat": 0,
    "top_n_sigma": -1,
    "best_of": 1,
    "tool_choice": "none",
    "tools": None,
}


@pytest.mark.parametrize("ask", [chat, completion])
async def test_their_neutral_values_ask_for_nothing(ask: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert await ask(**NEUTRAL) == await ask()
    assert not caplog.records


def test_unknown_fields_are_logged_once_a_name(caplog: pytest.LogCaptureFixture) -> None:
    unknown = UnknownFields()

    def note(**fields: Any) -> None:
        unknown.note(ChatCompletionRequest.model_validate({"messages": [{"role": "user", "content": "x"}], **fields}))

    note(temprature=0.1, metadata={}, store=True, service_tier="auto", user="u", seed=1)
    note(temprature=0.2, **{"two\nlines": 1})
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "'temprature'" in caplog.messages[0]
    assert r"'two\nlines'" in caplog.messages[1]
    for number in range(1000):
        note(**{f"x{number}" * 100: 1})
    assert len(caplog.records) == 256
    assert max(map(len, caplog.messages)) < 200


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (ChatCompletionRequest, {"messages": [{"role": "user", "content": "a"}]}),
        (CompletionRequest, {"prompt": "a"}),
        (ResponsesRequest, {"input": "a"}),
        (MessagesRequest, {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}),
        (CountTokensRequest, {"messages": [{"role": "user", "content": "a"}]}),
    ],
)
def test_every_api_refuses_what_constrains_a_reply(kind: type[RequestBody], body: dict[str, Any]) -> None:
    for name, value in {"bad_words": ["x"], "use_beam_search": True, "stop_regex": "a", "mirostat": 2}.items():
        with pytest.raises(InvalidRequestError, match=f"'{name}' is not served"):
            refuse_unserved(kind.model_validate(body | {name: value}))
    refuse_unserved(kind.model_validate(body | {"bad_words": [], "use_beam_search": False, "typical_p": 1.0}))


def test_counting_takes_a_message_s_body_as_it_is() -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "stop_sequences": ["x"], "top_k": 1}
    refuse_unserved(MessagesRequest.model_validate(body))
    refuse_unserved(CountTokensRequest.model_validate(body))


def test_refusals_of_messages_name_no_field_of_other_apis() -> None:
    for name in ("stop_regex", "format", "grammar_string", "typical_p", "truncate_prompt_tokens"):
        request = CountTokensRequest.model_validate({"messages": [{"role": "user", "content": "a"}], name: "x"})
        with pytest.raises(InvalidRequestError, match=rf"^'{name}' is not served\.$"):
            refuse_unserved(request)


def test_fields_that_only_another_api_refuses_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """They are ignored here, as a misspelt field is."""
    unknown = UnknownFields()
    body = {"messages": [{"role": "user", "content": "a"}], "max_output_tokens": 1, "echo": None, "store": True}
    unknown.note(ChatCompletionRequest.model_validate(body))
    unknown.note(CompletionRequest.model_validate({"prompt": "a", "max_completion_tokens": 1, "tools": None}))
    assert [text.split("'")[1] for text in caplog.messages] == ["max_output_tokens", "max_completion_tokens"]
