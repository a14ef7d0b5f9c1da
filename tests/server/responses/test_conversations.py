"""/v1/conversations: items that responses go on from and add to."""

from __future__ import annotations

from typing import Any

from tests.support.responses_api import URL, respond, said
from tests.support.wire import Wire

JsonDict = dict[str, Any]
CONVERSATIONS = "/v1/conversations"
ASKED = {"role": "user", "content": "My name is Bob."}
ANSWERED = {"role": "assistant", "content": "Hello, Bob."}


def items_of(wire: Wire, id: str, **asked: Any) -> list[JsonDict]:
    return list(wire.http.get(f"{CONVERSATIONS}/{id}/items", params={"order": "asc", **asked}).json()["data"])


def test_a_conversation_is_kept_changed_and_deleted(wire: Wire) -> None:
    made = wire.ok(CONVERSATIONS, {"metadata": {"a": "b"}, "items": [ASKED]})
    path = f"{CONVERSATIONS}/{made['id']}"
    assert wire.http.get(path).json() == made and made["metadata"] == {"a": "b"}
    assert wire.ok(path, {"metadata": {"c": "d"}})["metadata"] == {"c": "d"}
    added = wire.ok(f"{path}/items", {"items": [ANSWERED]})["data"]
    items = items_of(wire, made["id"])
    assert [item["content"][0]["text"] for item in items] == [ASKED["content"], ANSWERED["content"]]
    assert items[1:] == added
    assert items_of(wire, made["id"], limit=1, order="desc") == added
    one = f"{path}/items/{items[0]['id']}"
    assert wire.http.get(one).json() == items[0]
    assert wire.http.delete(one).json()["id"] == made["id"]
    assert wire.http.get(one).status_code == wire.http.delete(one).status_code == 404
    assert items_of(wire, made["id"]) == added
    assert wire.http.delete(path).json() == {"id": made["id"], "object": "conversation.deleted", "deleted": True}
    for method, where in (("GET", ""), ("DELETE", ""), ("GET", "/items"), ("GET", "/items/x"), ("DELETE", "/items/x")):
        assert wire.http.request(method, path + where).status_code == 404
    assert wire.http.post(path, json={}).status_code == 404
    assert wire.http.post(f"{path}/items", json={"items": [ASKED]}).status_code == 404
    assert wire.http.post(URL, json={"input": "x", "conversation": made["id"]}).status_code == 404
    error = wire.http.post(CONVERSATIONS, json={"items": [{"type": "web_search_call"}]}).json()["error"]
    assert error["param"] == "items[0].type"


def test_responses_go_on_from_it_and_add_to_it(wire: Wire) -> None:
    made = wire.ok(CONVERSATIONS, {"items": [ASKED, ANSWERED]})
    body = {"input": "What is my name?", "temperature": 0, "max_output_tokens": 12}
    response = wire.ok(URL, {**body, "conversation": {"id": made["id"]}})
    assert response["conversation"] == {"id": made["id"]}
    sent_whole = respond(wire, **{**body, "input": [ASKED, ANSWERED, {"role": "user", "content": body["input"]}]})
    assert said(response) == said(sent_whole)
    items = items_of(wire, made["id"])
    assert items[2]["content"][0]["text"] == body["input"] and items[3:] == response["output"]
    # One that is not kept adds all the same, and so does one in the background.
    wire.ok(URL, {**body, "conversation": made["id"], "store": False})
    begun = wire.ok(URL, {**body, "conversation": made["id"], "background": True})
    wire.http.get(f"{URL}/{begun['id']}", params={"stream": True})
    assert len(items_of(wire, made["id"])) == 8
    named = [{"type": "item_reference", "id": items[0]["id"]}]
    assert wire.http.get(f"{URL}/{wire.ok(URL, {**body, 'input': named})['id']}/input_items").json()["data"] == [
        items[0]
    ]
