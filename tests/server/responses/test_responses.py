"""/v1/responses over the wire: items, events, what is kept, and that it says what a chat says."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from model.contract.errors import InvalidRequestError
from server.conversion.readers.responses import MAX_ITEMS, new_items, read_items, read_responses
from server.gates.request_context import body_bytes_var
from server.off_loop import OffLoop
from server.responses.pages import read_page
from server.responses.stored_responses import CONVERSATION, StoredResponses, append_items, with_ids
from server.store.records import Put, StoredObject
from server.store.store import Store
from server.wire.errors import ApiError
from server.wire.shapes.responses import ResponsesRequest
from tests.support.responses_api import SEEDED, URL, JsonDict, events, respond, said
from tests.support.wire import Wire

WEATHER = {
    "name": "get_weather",
    "description": "Current weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]},
}
TOOL = {"type": "function", **WEATHER}
QUESTION = {"role": "user", "content": "What is the weather in Paris?"}
CALL = {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": '{"city": "Paris"}'}
RESULT = {"type": "function_call_output", "call_id": "call_1", "output": "18 degrees, sunny"}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


# --- the same as a chat


@pytest.mark.parametrize(
    ("items", "messages", "more"),
    [
        ([QUESTION], [QUESTION], {}),
        (
            [QUESTION, CALL, RESULT],
            [
                QUESTION,
                {"role": "assistant", "tool_calls": [{"id": "call_1", "type": "function", "function": {
                    "name": CALL["name"], "arguments": CALL["arguments"]}}]},
                {"role": "tool", "tool_call_id": "call_1", "content": RESULT["output"]},
            ],
            {},
        ),
        (
            [QUESTION, {"role": "assistant", "content": "I look it up."}, {"type": "reasoning", "summary": []}, CALL,
             RESULT, {"role": "user", "content": [{"type": "input_text", "text": "And in Rome?"}]}],
            [
                QUESTION,
                {"role": "assistant", "content": "I look it up.", "tool_calls": [
                    {"id": "call_1", "type": "function", "function": {
                        "name": CALL["name"], "arguments": CALL["arguments"]}}]},
                {"role": "tool", "tool_call_id": "call_1", "content": RESULT["output"]},
                {"role": "user", "content": "And in Rome?"},
            ],
            {"tool_choice": "required"},
        ),
    ],
    ids=["question", "result", "thought and call"],
)  # fmt: skip
def test_it_says_what_a_chat_says(wire: Wire, items: Any, messages: Any, more: JsonDict) -> None:
    response = respond(wire, input=items, instructions="Be brief.", tools=[TOOL], **SEEDED, **more)
    chat = wire.chat(
        max_tokens=24,
        messages=[{"role": "system", "content": "Be brief."}, *messages],
        tools=[{"type": "function", "function": WEATHER}],
        **SEEDED,
        **more,
    )
    (choice,) = chat["choices"]
    text, calls = said(response)
    assert text == choice["content"]
    assert calls == [(call["name"], call["arguments"]) for call in choice["calls"]]
    usage = response["usage"]
    assert usage["input_tokens"] == chat["usage"]["prompt_tokens"]
    assert usage["output_tokens"] == chat["usage"]["completion_tokens"]


def test_formats_are_enforced(wire: Wire) -> None:
    text_format = {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}
    text, _ = said(respond(wire, text={"format": text_format}, temperature=1, seed=3))
    assert isinstance(json.loads(text)["n"], int)
    text, _ = said(respond(wire, text={"format": {"type": "json_object"}}, temperature=1, seed=3))
    assert isinstance(json.loads(text), dict)


def test_a_custom_tool_is_called_with_text(wire: Wire) -> None:
    tool = {
        "type": "custom",
        "name": "calc",
        "format": {"type": "grammar", "syntax": "regex", "definition": "[0-9]{3}"},
    }
    choice = {"type": "custom", "name": "calc"}
    (call,) = respond(wire, tools=[tool], tool_choice=choice, temperature=1, seed=1)["output"]
    assert call["type"] == "custom_tool_call" and call["input"].isdigit() and len(call["input"]) == 3
    result = {
        "type": "custom_tool_call_output",
        "call_id": call["call_id"],
        "output": [{"type": "input_text", "text": "7"}],
    }
    assert respond(wire, input=[QUESTION, call, result], tools=[tool])["output"]


def test_tools_may_stand_in_a_namespace(wire: Wire) -> None:
    space = {"type": "namespace", "name": "sky", "description": "Weather", "tools": [TOOL]}
    asked: JsonDict = {"input": [QUESTION], "tools": [space], "max_output_tokens": 200, **SEEDED}
    (call,) = respond(wire, **asked, tool_choice={"type": "function", "name": "sky.get_weather"})["output"]
    assert (call["namespace"], call["name"]) == ("sky", "get_weather")
    result = {**RESULT, "call_id": call["call_id"]}
    request = ResponsesRequest.model_validate({"input": [QUESTION, call, result], "tools": [space]})
    chat = read_responses(request, new_items(request.input))
    assert chat.messages[1].calls[0].name == chat.calling.names[0] == "sky.get_weather"


def test_what_is_cut_off_is_incomplete(wire: Wire) -> None:
    response = respond(wire, input="Tell me a story.", max_output_tokens=3)
    assert response["status"] == "incomplete" and response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][0]["status"] == "incomplete" and response["completed_at"] is None
    forced = respond(wire, tools=[TOOL], tool_choice="required", max_output_tokens=6)
    assert forced["output"][-1]["status"] == "incomplete"


def test_tokens_are_reported_where_they_are_asked_for(wire: Wire) -> None:
    include = {"include": ["message.output_text.logprobs", "reasoning.encrypted_content"], "top_logprobs": 2}
    (part,) = respond(wire, input=[QUESTION], **include)["output"][0]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in part["logprobs"]).decode(errors="replace") == part["text"]
    assert {len(entry["top_logprobs"]) for entry in part["logprobs"]} == {2}
    (part,) = respond(wire, input=[QUESTION])["output"][0]["content"]
    assert part["logprobs"] == []


def test_the_request_is_told_back(wire: Wire) -> None:
    sent = {"metadata": {"a": "b"}, "instructions": "Be kind.", "parallel_tool_calls": False, "user": "u",
            "truncation": "auto", "tools": [TOOL], "tool_choice": "none", "top_p": 0.5}  # fmt: skip
    response = respond(wire, **sent)
    assert {key: response[key] for key in sent} == sent
    assert response["text"]["format"] == {"type": "text"} and response["store"] is True


# --- what is kept


def test_a_conversation_goes_on_from_a_response(wire: Wire) -> None:
    first = respond(wire, input="My name is Bob.")
    second = respond(wire, input="What is my name?", previous_response_id=first["id"], instructions="Be brief.")
    sent_whole = respond(
        wire,
        input=[{"role": "user", "content": "My name is Bob."}, *first["output"],
               {"role": "user", "content": "What is my name?"}],
        instructions="Be brief.",
    )  # fmt: skip
    assert said(sent_whole) == said(second)
    items = wire.http.get(f"{URL}/{second['id']}/input_items", params={"order": "asc"}).json()
    texts = [item["content"][0]["text"] for item in items["data"]]
    assert texts == ["My name is Bob.", said(first)[0], "What is my name?"]
    assert items["data"][1] == first["output"][0] and len({item["id"] for item in items["data"]}) == 3
    # Those before it may go.
    assert wire.http.delete(f"{URL}/{first['id']}").json() == {
        "id": first["id"], "object": "response", "deleted": True
    }  # fmt: skip
    third = respond(wire, input="Again, what is my name?", previous_response_id=second["id"])
    assert wire.http.get(f"{URL}/{third['id']}").json() == third
    error = wire.http.post(URL, json={"input": "x", "previous_response_id": first["id"]}).json()["error"]
    assert (error["param"], error["code"]) == ("previous_response_id", "previous_response_not_found")
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
        assert wire.http.request(method, f"{URL}/{first['id']}{path}").status_code == 404


def test_a_call_is_answered_by_its_result_alone(wire: Wire) -> None:
    choice = {"type": "function", "name": "get_weather"}
    asked = respond(wire, input=[QUESTION], tools=[TOOL], tool_choice=choice, max_output_tokens=200, **SEEDED)
    call = asked["output"][-1]
    result = {**RESULT, "call_id": call["call_id"]}
    answer = respond(wire, input=[result], previous_response_id=asked["id"], tools=[TOOL])
    assert said(answer) == said(respond(wire, input=[QUESTION, *asked["output"], result], tools=[TOOL]))
    error = wire.http.post(URL, json={"input": "x", "previous_response_id": asked["id"]}).json()
    assert "id" in error  # a result may be missing in the middle, as in a chat
    for items in ([QUESTION, CALL], [QUESTION, result]):
        refused = wire.http.post(URL, json={"input": items}).json()["error"]
        assert refused["param"] == "input" and "call" in refused["message"]


def test_what_is_not_to_be_kept_is_not(wire: Wire) -> None:
    response = respond(wire, store=False)
    assert response["store"] is False
    assert wire.http.get(f"{URL}/{response['id']}").status_code == 404
    reference = {"type": "item_reference", "id": response["output"][0]["id"]}
    refused = wire.http.post(URL, json={"input": [reference, QUESTION]})
    assert refused.status_code == 404 and "not kept" in refused.json()["error"]["message"]


def test_items_may_be_named_instead_of_sent(wire: Wire) -> None:
    first = respond(wire, input="My name is Bob.")
    asked = wire.http.get(f"{URL}/{first['id']}/input_items").json()["data"][0]["id"]
    named = [{"type": "item_reference", "id": asked}, {"id": first["output"][0]["id"]},
             {"role": "user", "content": "What is my name?"}]  # fmt: skip
    by_name = respond(wire, input=named)
    assert said(by_name) == said(respond(wire, input="What is my name?", previous_response_id=first["id"]))


# --- in the background


def poll(wire: Wire, response: JsonDict) -> JsonDict:
    stream = wire.http.get(f"{URL}/{response['id']}", params={"stream": True})
    last = events(stream.text)[-1]["response"]
    found = wire.http.get(f"{URL}/{response['id']}").json()
    assert found == last
    return dict(found)


def test_a_response_in_the_background_is_made_without_its_client(wire: Wire) -> None:
    body = {"input": "Tell me a story.", "max_output_tokens": 30, **SEEDED}
    begun = wire.ok(URL, {**body, "background": True})
    assert begun["status"] == "queued" and begun["output"] == []
    made = poll(wire, begun)
    assert made["status"] == "incomplete" and made["background"] is True
    assert said(made) == said(respond(wire, **body))
    assert wire.http.post(f"{URL}/{begun['id']}/cancel").json() == made  # it is too late
    assert wire.http.get(f"{URL}/{begun['id']}", params={"starting_after": 1}).status_code == 400
    assert wire.http.post(URL, json={**body, "background": True, "store": False}).status_code == 400


def test_its_stream_is_taken_up_from_any_event(wire: Wire) -> None:
    body = {"input": "Tell me a story.", "max_output_tokens": 24, "background": True, "stream": True}
    whole = wire.http.post(URL, json=body).text
    happened = events(whole)
    assert [event["type"] for event in happened[:3]] == [
        "response.created", "response.queued", "response.in_progress"
    ]  # fmt: skip
    id = happened[0]["response"]["id"]
    pieces = whole.split("\n\n")[:-1]
    for start in (0, 4, len(pieces) - 2, len(pieces) - 1, len(pieces) + 5):
        again = wire.http.get(f"{URL}/{id}", params={"stream": True, "starting_after": start})
        assert again.text.split("\n\n")[:-1] == pieces[start + 1 :]
    unstreamed = respond(wire)
    error = wire.http.get(f"{URL}/{unstreamed['id']}", params={"stream": True}).json()["error"]
    assert error["code"] == "events_not_kept"


def test_one_that_is_not_wanted_any_more_ends(wire: Wire) -> None:
    body = {"input": "Tell me a story.", "max_output_tokens": 400, "ignore_eos": True, "background": True}
    with wire.http.stream("POST", URL, json={**body, "stream": True}) as stream:
        lines = stream.iter_lines()
        id = json.loads(next(line for line in lines if line.startswith("data: "))[6:])["response"]["id"]
        next(line for line in lines if "output_text.delta" in line)
        cancelled = wire.http.post(f"{URL}/{id}/cancel").json()
        rest = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert rest[-1]["response"] == cancelled and cancelled["status"] == "cancelled"
    assert cancelled["output"][0]["status"] == "incomplete" and said(cancelled)[0]
    assert wire.http.get(f"{URL}/{id}").json() == cancelled
    other = wire.ok(URL, body)
    assert wire.http.delete(f"{URL}/{other['id']}").json()["deleted"]
    assert wire.http.get(f"{URL}/{other['id']}").status_code == 404
    assert wire.http.post(f"{URL}/{respond(wire)['id']}/cancel").status_code == 400


# --- refusals


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": "x", "tools": [{"type": "function"}]}, "tools[0].name"),
        ({"input": "x", "tools": [{"type": "namespace", "tools": []}]}, "tools[0].name"),
        ({"input": "x", "max_tokens": 5}, "max_tokens"),
        ({"input": "x", "response_format": {"type": "json_object"}}, "response_format"),
        ({"input": "x", "prompt": {"id": "p"}}, "prompt"),
        ({"input": "x", "n": 2}, "n"),
        ({"input": "x", "stream_options": {}}, "stream_options"),
        ({"input": "x", "truncation": "middle"}, "truncation"),
        ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format"),
        ({"input": "x", "previous_response_id": "resp_1", "conversation": "conv_1"}, "previous_response_id"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0].type"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "u"}]}]}, "input[0].content[0]"),
        ({"input": "x", "include": ["everything"]}, "include[0]"),
        ({"input": "x", "metadata": {"k" * 65: "v"}}, "metadata"),
        ({"input": "x" * 600_000}, "input"),
        ({"input": "x", "max_output_tokens": 10**6}, "max_output_tokens"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(wire: Wire, body: JsonDict, param: str) -> None:
    response = wire.http.post(URL, json=body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


# --- items


def test_calls_are_part_of_what_is_said_before_them() -> None:
    request = ResponsesRequest.model_validate(
        {"input": [QUESTION, {"role": "assistant", "content": "a"}, CALL, {**CALL, "call_id": "call_2"}, RESULT,
                   {**RESULT, "call_id": "call_2"}, {**CALL, "call_id": "call_3"}, {**RESULT, "call_id": "call_3"}]}
    )  # fmt: skip
    messages = read_items(new_items(request.input))
    assert [(m.role, m.content, len(m.calls)) for m in messages] == [
        ("user", QUESTION["content"], 0), ("assistant", "a", 2), ("tool", RESULT["output"], 0),
        ("tool", RESULT["output"], 0), ("assistant", "", 1), ("tool", RESULT["output"], 0),
    ]  # fmt: skip
    assert read_responses(request, new_items(request.input)).guards_results is True
    with pytest.raises(InvalidRequestError, match=f"at most {MAX_ITEMS} items"):
        read_items(new_items("x") * (MAX_ITEMS + 1))


def test_a_client_may_tell_of_a_call_that_it_made_itself() -> None:
    told = {"type": "function_call_output", "name": "goal", "namespace": "agent", "output": "win"}
    request = ResponsesRequest.model_validate({"input": [QUESTION, CALL, RESULT, told]})
    messages = read_items(new_items(request.input))
    assert [m.role for m in messages] == ["user", "assistant", "tool", "assistant", "tool"]
    assert messages[3].calls[0].name == "agent.goal" and messages[4].content == "win"


def test_fields_that_are_not_of_the_api_are_not_taken() -> None:
    sent = {"input": "hi", "n": 1.0, "return_token_ids": "x", "prompt_logprobs": 0}
    options = read_responses(ResponsesRequest.model_validate(sent), new_items("hi")).options
    assert (str(options.n), options.return_token_ids, options.prompt_logprobs) == ("1", False, None)


async def test_items_that_are_named_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    store, hex = Store(), "0" * 32
    items = with_ids(new_items("\ud800" + "x" * 500), hex, 0)
    named = [{"type": "item_reference", "id": items[0]["id"]}] * 3
    store.start()
    try:
        conversation = StoredObject(id=f"conv_{hex}", kind=CONVERSATION, owner="", body={})
        await store.write(Put(conversation), append_items(conversation.id, items))
        monkeypatch.setattr("server.responses.stored_responses.MAX_CONVERSATION_BYTES", 2500)
        kept = StoredResponses(store, OffLoop())
        found = await kept.resolved("", named)
        assert [item["content"][0]["text"] for item in found] == ["?" + "x" * 500] * 3
        assert body_bytes_var.get() > 1500, "what they are for is as large as they are"
        with pytest.raises(InvalidRequestError, match="name fewer"):
            await kept.resolved("", named * 2)
    finally:
        store.close()


async def test_pages() -> None:
    store = Store()
    store.start()
    try:
        kept = StoredObject(id="conv_a", kind="conversation", owner="ann", body={})
        await store.write(Put(kept), append_items(kept.id, [{"id": str(n), "text": "x" * 99} for n in range(5)]))

        async def page(owner: str = "ann", **asked: Any) -> dict[str, Any]:
            asked = {"limit": 2, "order": "desc", **asked}
            return cast("dict[str, Any]", json.loads(await read_page(store, owner, kept.id, **asked)))

        async def ids(**asked: Any) -> list[str]:
            return [item["id"] for item in (await page(**asked))["data"]]

        assert await ids() == ["4", "3"]
        assert await ids(after="3") == ["2", "1"]
        assert await ids(order="asc", after="3", limit=9) == ["4"]
        assert await ids(before="3", limit=9) == ["4"]
        assert await ids(order="asc", after="0", before="3") == ["1", "2"]
        assert await ids(order="asc", after="3", before="1") == []
        last = await page(order="asc", after="2")
        assert list(last) == ["object", "data", "first_id", "last_id", "has_more"]
        assert (last["object"], last["first_id"], last["last_id"], last["has_more"]) == ("list", "3", "4", False)
        assert (await page())["has_more"] and not (await page(before="2"))["has_more"]
        with pytest.raises(ApiError):
            await page(order="asc", after="9")
        assert await page("bob") == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    finally:
        store.close()


async def test_a_page_of_many_bytes_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read to its end nevertheless: each page says whether there is more."""
    for module in ("server.responses.pages", "server.store.store"):
        monkeypatch.setattr(f"{module}.MAX_READ_BYTES", 150)
    monkeypatch.setattr(Store.entries, "__kwdefaults__", {**(Store.entries.__kwdefaults__ or {}), "max_bytes": 150})
    store = Store()
    store.start()
    try:
        kept = StoredObject(id="conv_a", kind="conversation", owner="", body={})
        await store.write(Put(kept), append_items(kept.id, [{"id": str(n), "text": "x" * 99} for n in range(5)]))
        found: list[list[str]] = []
        has_more = True
        while has_more:
            after = found[-1][-1] if found else None
            page = json.loads(await read_page(store, "", kept.id, limit=4, order="asc", after=after))
            found.append([item["id"] for item in page["data"]])
            has_more = page["has_more"]
        assert found == [["0", "1"], ["2", "3"], ["4"]]
    finally:
        store.close()
