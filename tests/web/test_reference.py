"""The reference at /docs: made of /openapi.json by this server alone, also where no other host can be reached."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from server.routes import chat, completions, health, models, page, tokenize
from tests.support.server_process import ServerProcess
from tests.web.conftest import watch


def test_whatever_is_html_is_fenced_in(server: ServerProcess) -> None:
    policy = httpx.get(server.url).headers["content-security-policy"]
    routers = (chat, completions, health, models, page, tokenize)
    paths = {route.path for router in routers for route in router.router.routes if isinstance(route, APIRoute)}
    found = set()
    with httpx.Client(base_url=server.url) as http:
        for path in (*paths, "/docs/oauth2-redirect"):
            reply = http.get(path)
            if "html" in reply.headers.get("content-type", ""):
                found.add(path)
                assert reply.headers["content-security-policy"] == policy
                assert "//" not in reply.text.replace("</", "")
    assert found == {"/", "/docs", "/redoc"}


@pytest.fixture
def reference(browser: Any, server: ServerProcess) -> Iterator[Any]:
    problems: list[str] = []
    with browser.new_context(viewport={"width": 1200, "height": 900}) as context:
        tab = context.new_page()
        watch(tab, server.url, problems)
        tab.goto(f"{server.url}/docs")
        tab.locator("section").first.wait_for()
        yield tab
    assert not problems


def test_it_shows_every_route_and_every_field(reference: Any, server: ServerProcess) -> None:
    document = httpx.get(f"{server.url}/openapi.json").json()
    routes = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    titles = reference.locator("section h2").all_inner_texts()
    assert {" ".join(title.split()) for title in titles} == routes
    assert len(reference.locator("#routes a").all()) == len(routes)
    section = reference.get_by_role("region", name="POST /v1/chat/completions", exact=True)
    fields = section.locator("> .fields").first.locator("> div > dt").all_inner_texts()
    names = {field.replace("required", "").strip() for field in fields}
    assert names == document["components"]["schemas"]["ChatCompletionRequest"]["properties"].keys()
    bounds = document["components"]["schemas"]["ChatCompletionRequest"]["properties"]["top_p"]["anyOf"][0]
    top_p = section.locator(".fields > div").filter(has=reference.get_by_text("top_p", exact=True)).first
    assert f"number, {bounds['minimum']} to {bounds['maximum']}" in top_p.inner_text()
    section.locator("summary", has_text="ChatMessage").first.click()
    assert section.locator(".fields .fields").first.locator("dt").first.inner_text().startswith("role")


def test_its_examples_can_be_changed_and_sent(reference: Any) -> None:
    section = reference.get_by_role("region", name="POST /v1/chat/completions", exact=True)
    section.get_by_role("tab", name="A stream, with its usage at the end").click()
    body = json.loads(section.get_by_role("textbox").input_value())
    section.get_by_role("textbox").fill(json.dumps({**body, "max_tokens": 3, "ignore_eos": True}))
    section.get_by_role("button", name="Send").click()
    section.get_by_text("[DONE]").wait_for()
    assert '"completion_tokens":3' in section.get_by_label("Reply").inner_text()
    section.get_by_role("textbox").fill('{"messages": []}')
    section.get_by_role("button", name="Send").click()
    section.get_by_text("'messages'").wait_for()
    one = reference.get_by_role("region", name="/v1/models/{model_id}")
    one.get_by_role("textbox", name="model_id").fill("Qwen")
    one.get_by_role("button", name="Send").click()
    one.get_by_text('"id": "Qwen"').wait_for()


def test_it_asks_for_the_key_of_a_locked_server(browser: Any, server: ServerProcess) -> None:
    """The shared server, with a lock that the browser puts before it."""
    keys = []

    def guard(route: Any) -> None:
        keys.append(route.request.headers.get("authorization"))
        if keys[-1] == "Bearer sesame":
            route.continue_()
        else:
            route.fulfill(status=401, json={"error": {"message": "You did not provide an API key."}})

    settings = httpx.get(f"{server.url}/web/settings.json").json()
    with browser.new_context() as context:
        tab = context.new_page()
        tab.route("**/v1/models", guard)
        tab.route("**/web/settings.json", lambda route: route.fulfill(json={**settings, "auth": {"bearer": True}}))
        tab.goto(f"{server.url}/docs")
        listing = tab.get_by_role("region", name="GET /v1/models", exact=True)
        listing.get_by_role("button", name="Send").click()
        tab.get_by_label("Key", exact=True).fill("sesame")
        tab.get_by_role("button", name="Use this key").click()
        listing.get_by_text('"object": "list"').wait_for()
        tab.unroute_all()
    assert keys == [None, "Bearer sesame"]
