"""Talking: send, stream, stop, regenerate, edit, undo, several conversations, and what a reload keeps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.server_process import ServerProcess
from tests.web.driver import SHORT, ChatPage, text

OpenPage = Callable[..., ChatPage]


def test_a_conversation_that_a_reload_keeps(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server, SHORT)
    chat.input.fill("first line")
    chat.input.press("Shift+Enter")
    chat.input.type("second line")
    chat.input.press("Enter")
    reply = chat.reply()
    assert reply
    assert chat.input.input_value() == ""
    assert chat.page.evaluate("document.activeElement.id") == "composer-input"
    assert chat.said() == ["first line\nsecond line"]
    assert re.fullmatch(  # a reply that comes all at once, as on a busy machine, has no speed
        r"first token [\d.,]+ m?s( · [\d.,]+ tokens/s)? · 12 tokens · prompt \d+( \(\d+ cached\))?"
        r" · token limit reached",
        chat.stats(),
    )
    assert chat.ask("again")
    chat.page.reload()
    assert chat.said() == ["first line\nsecond line", "again"]
    assert chat.replies.first.locator(".markdown").inner_text() == reply
    assert "12 tokens" in chat.stats()
    assert chat.page.locator("#title").inner_text() == "first line second line"
    assert chat.page.title() == "first line second line · qwen-server"


def test_the_reply_streams_and_stops(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server, {"sampling": {"temperature": 0}})
    markdown = chat.replies.locator(".markdown")
    stops = {
        "key": lambda: chat.page.keyboard.press("Escape"),
        "button": lambda: chat.button("Stop").click(),
        "reload": chat.page.reload,
    }
    for name, stop in stops.items():
        chat.button("New chat").click()
        chat.say("hello")  # the fixture's checkpoint fills its whole context with the answer to this
        chat.until("document.querySelector('[aria-busy=true] .markdown')?.textContent.length > 10")
        first = len(markdown.inner_text())
        chat.until(f"document.querySelector('[aria-busy=true] .markdown').textContent.length > {first}")
        stop()
        server.wait_idle()
        chat.reply()
        assert len(markdown.inner_text()) > 10, name
        assert "stopped by you" in chat.stats(), name
        assert chat.button("Go on from here").is_visible()
        chat.until("document.activeElement.id === 'composer-input'")
    assert chat.page.locator("#conversations li").count() == 3


def test_regenerate_and_go_on(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server, SHORT)
    requests: list[Any] = []
    chat.page.on("request", lambda r: requests.append(r.post_data_json) if r.method == "POST" else None)
    first = chat.ask("one")
    chat.button("Write another reply").click()
    assert chat.reply() == first  # greedy
    assert requests[0] == requests[1]
    assert chat.replies.count() == 1
    chat.button("Go on from here").click()
    longer = chat.reply()
    assert longer.startswith(first.rstrip())
    assert len(longer) > len(first)
    assert requests[2]["messages"][-1]["role"] == "assistant"


def test_edit_and_resend_with_undo(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server, SHORT)
    chat.answer_with(text("A."), text("B."), text("C."))
    chat.ask("first")
    chat.ask("second")
    chat.users.first.hover()
    edit = chat.users.first.get_by_role("button", name="Edit and send again")
    edit.click()
    area = chat.page.get_by_label("Your message")
    area.press("Escape")
    assert edit.evaluate("node => node === document.activeElement")
    edit.click()
    area.fill("changed")
    area.press("Enter")
    assert chat.reply() == "C."
    assert chat.said() == ["changed"]
    chat.button("Undo").click()
    assert chat.said() == ["first", "second"]
    assert chat.replies.locator(".markdown").all_inner_texts() == ["A.", "B."]


def test_a_reply_that_failed_gives_the_old_one_back(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server, SHORT)
    chat.answer_with(text("A good answer."))
    chat.ask("one")
    chat.page.unroute_all()
    chat.page.route("**/v1/chat/completions", lambda route: route.abort())
    chat.button("Write another reply").click()
    chat.page.get_by_text("No new reply came; the old one can come back.").wait_for()
    chat.button("Undo").click()
    assert chat.said() == ["one"]
    assert chat.replies.locator(".markdown").all_inner_texts() == ["A good answer."]
    chat.page.reload()
    chat.replies.last.wait_for()
    assert chat.replies.locator(".markdown").all_inner_texts() == ["A good answer."]


def test_enter_that_accepts_a_suggestion_sends_nothing(server: ServerProcess, open_page: OpenPage) -> None:
    """As Safari tells of it: the composition has ended by then, and only the code of the key is its own."""
    accept = "node => node.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', keyCode: 229, bubbles: true}))"
    chat = open_page(server, SHORT)
    requests = chat.answer_with(text("A."))
    chat.ask("first")
    chat.input.fill("ni hao")
    chat.input.evaluate(accept)
    chat.users.first.hover()
    chat.users.first.get_by_role("button", name="Edit and send again").click()
    area = chat.page.get_by_label("Your message")
    area.fill("ni")
    area.evaluate(accept)
    assert area.is_visible()
    area.press("Escape")
    chat.page.locator("#conversations li").last.hover()
    chat.button("Rename “first”").click()
    title = chat.page.get_by_label("Name of the conversation")
    title.evaluate(accept)
    assert title.is_visible()
    assert len(requests) == 1
    assert chat.input.input_value() == "ni hao"


def test_several_conversations(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server, SHORT)
    chat.answer_with(text("A."))
    names = chat.page.locator("#conversations .title")
    chat.ask("apples")
    chat.input.fill("a draft")
    chat.button("New chat").click()
    assert chat.input.input_value() == ""
    chat.ask("pears")
    assert names.all_inner_texts() == ["pears", "apples"]
    chat.page.get_by_role("button", name="apples", exact=True).click()
    assert chat.said() == ["apples"]
    assert chat.input.input_value() == "a draft"
    chat.page.locator("#conversations li").last.hover()
    chat.button("Rename “apples”").click()
    chat.page.get_by_label("Name of the conversation").fill("fruit")
    chat.page.keyboard.press("Enter")
    chat.page.locator("#conversations li").last.hover()
    chat.button("Delete “fruit”").click()
    assert names.all_inner_texts() == ["pears"]
    chat.button("Undo").click()
    chat.page.reload()
    assert sorted(names.all_inner_texts()) == ["fruit", "pears"]


def test_two_tabs_do_not_overwrite_each_other(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server, SHORT)
    other = ChatPage(chat.page.context.new_page(), chat.url, chat.problems)
    other.open()
    chat.answer_with(text("A."))
    other.answer_with(text("B."))
    chat.ask("here")
    other.ask("there")
    chat.page.bring_to_front()  # as a user does; behind, a tab draws once a second, and each click waits for that
    chat.page.get_by_role("button", name="there", exact=True).click()
    assert chat.said() == ["there"]
    assert sorted(other.page.locator("#conversations .title").all_inner_texts()) == ["here", "there"]
    other.page.bring_to_front()
    other.page.locator("#conversations li").last.hover()
    other.button("Rename “here”").click()
    field = other.page.get_by_label("Name of the conversation")
    field.fill("renamed")
    chat.page.bring_to_front()
    chat.page.locator("#conversations .title", has_text=re.compile("^here$")).click()
    chat.ask("more")
    if field.count():  # else the news from here have ended it
        field.press("Enter")
    other.until("[...document.querySelectorAll('#conversations .title')].some((n) => n.textContent === 'renamed')")
    chat.page.reload()
    chat.page.locator("#conversations .title", has_text="renamed").click()
    assert chat.said() == ["here", "more"]
    assert chat.page.locator("#conversations li").count() == 2


def test_export_and_import(server: ServerProcess, open_page: OpenPage, tmp_path: Path) -> None:
    chat = open_page(server, SHORT)
    chat.answer_with(text("**A**"))
    chat.ask("apples")
    with chat.page.expect_download() as download:
        chat.button("Export").click()
    path = tmp_path / "export.json"
    download.value.save_as(path)
    exported = json.loads(path.read_text())
    assert [m["content"] for m in exported["conversations"][0]["messages"]] == ["apples", "**A**"]

    fresh = open_page(server)
    chooser = fresh.page.locator("#import-file")
    chooser.set_input_files(path)
    assert fresh.said() == ["apples"]
    assert fresh.replies.locator("strong").inner_text() == "A"
    chooser.set_input_files(path)  # once more: a copy, under an id of its own
    fresh.until("document.querySelectorAll('#conversations li').length === 2")
    assert fresh.page.locator("#conversations .title").all_inner_texts() == ["apples", "apples"]
    bad = tmp_path / "bad.json"
    for content in ("{", "[]", '{"format": "qwen-server-conversations", "conversations": [{"id": "x"}]}'):
        bad.write_text(content)
        chooser.set_input_files(bad)
        fresh.page.get_by_text("bad.json holds no conversations exported from this page.").wait_for()
        fresh.page.locator(".toast").get_by_role("button", name="Close").click()
    assert fresh.page.locator("#conversations li").count() == 2


def test_settings_are_sent_as_they_are_shown(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server)
    requests = chat.answer_with(text("A."))
    chat.ask("plain")
    assert set(requests[0]) == {"model", "messages", "stream", "stream_options"}
    chat.open_panel("Settings")
    assert chat.field("Nucleus").get_attribute("placeholder") == "0.8"  # what the checkpoint says
    chat.field("System prompt").fill("Be brief.")
    chat.field("Temperature").fill("-1")
    chat.field("Temperature").press("Tab")
    assert chat.field("Temperature").get_attribute("aria-invalid") == "true"
    chat.field("Temperature").fill("0.5")
    chat.field("Temperature").press("ArrowUp")
    chat.field("Seed").fill("-7")
    chat.field("Reply length").fill("5")
    chat.field("Stop at").fill("END\n\\n\\n")
    chat.page.get_by_label("Drop the oldest messages").check()
    chat.input.click()
    chat.ask("with settings")
    assert requests[1]["messages"][0] == {"role": "system", "content": "Be brief."}
    sent = {name: requests[1][name] for name in ("temperature", "seed", "max_completion_tokens", "stop", "truncation")}
    assert sent == {
        "temperature": 0.6,
        "seed": -7,
        "max_completion_tokens": 5,
        "stop": ["END", "\n\n"],
        "truncation": "auto",
    }
    chat.page.reload()
    assert chat.field("Seed").input_value() == "-7"
    chat.button("Back to the server's values").click()
    chat.ask("reset")
    assert set(requests[2]) == {"model", "messages", "stream", "stream_options"}
