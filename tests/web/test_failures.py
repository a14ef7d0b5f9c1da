"""Keys, dead servers and broken streams: always a sentence, never a lost conversation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import SMALL
from tests.support.in_process_server import InProcessServer, in_process_server
from tests.support.server_process import Server
from tests.web.driver import SHORT, ChatPage, sse, text

OpenPage = Callable[..., ChatPage]
KEY = "sesame-ключ"
USER = "ada:lovelace:1"


@pytest.fixture(scope="module")
def locked_server(demo_checkpoint: Path) -> Iterator[InProcessServer]:
    """A server with keys; the last test here ends it."""
    flags = (*SMALL, "--max-model-len", "512", "--api-key", "sesame", "--api-auth", USER)
    with in_process_server(demo_checkpoint, *flags) as server:
        yield server


def test_a_wrong_key_and_then_the_right_one(locked_server: InProcessServer, open_page: OpenPage) -> None:
    chat = open_page(locked_server, SHORT, locked=True)
    dialog = chat.page.get_by_role("dialog", name="This server asks for a key")
    dialog.wait_for()
    field = dialog.get_by_label("Key", exact=True)
    assert field.evaluate("node => node === document.activeElement && node.type === 'password'")
    field.fill("wrong")
    field.press("Enter")
    dialog.get_by_text("The server does not accept this key.").wait_for()
    field.fill(KEY)
    field.press("Enter")
    dialog.get_by_text("The server does not accept this key.").wait_for()
    field.fill("sesame")
    field.press("Enter")
    dialog.wait_for(state="hidden")
    assert chat.ask("hello")
    stored = chat.page.evaluate("[sessionStorage, localStorage].map((storage) => JSON.stringify({ ...storage }))")
    assert "sesame" in stored[0]
    assert "sesame" not in stored[1]
    chat.button("Request and events").click()
    chat.page.get_by_role("tab", name="curl").click()
    assert "sesame" not in chat.page.locator(".raw").inner_text()
    chat.page.reload()
    assert chat.ask("again")
    assert not dialog.is_visible()
    chat.open_panel("Server")  # /metrics may be read
    chat.until("/^[0-9]/.test(document.querySelector('.numbers dd').textContent)")


def test_a_user_and_a_password(locked_server: InProcessServer, open_page: OpenPage) -> None:
    chat = open_page(locked_server, SHORT, locked=True)
    field = chat.page.get_by_label("Key", exact=True)
    field.fill(USER)
    field.press("Enter")
    assert chat.ask("hello")


def test_without_a_key_the_page_says_what_is_missing(locked_server: InProcessServer, open_page: OpenPage) -> None:
    chat = open_page(locked_server, SHORT, locked=True)
    dialog = chat.page.get_by_role("dialog")
    dialog.wait_for()
    chat.page.keyboard.press("Escape")
    chat.page.locator("#banner").get_by_text("The server wants a key.").wait_for()
    chat.say("hello")
    dialog.get_by_role("button", name="Cancel").click()
    chat.replies.get_by_role("alert").get_by_text("The server wants a key.").wait_for()
    chat.button("Try again").click()
    dialog.get_by_label("Key", exact=True).fill("sesame")
    chat.button("Use this key").click()
    assert chat.reply()
    chat.page.locator("#banner").wait_for(state="hidden")


def test_errors_are_sentences(server: Server, open_page: OpenPage) -> None:
    chat = open_page(server, SHORT)
    alert = chat.replies.last.get_by_role("alert")

    chat.open_panel("Settings")
    chat.field("Stop at").fill("\n".join("abcdefghijklmnopq"))
    chat.ask("too many stops, says the real server")
    assert alert.locator("p").inner_text() == (
        "The server refused the request. 'stop': at most 16 stop strings are allowed."
    )
    chat.button("Back to the server's values").click()

    busy = json.dumps({"error": {"message": "9 requests are waiting.", "type": "rate_limit_exceeded", "code": "x"}})
    chat.answer_with(busy, status=429, headers={"Retry-After": "7"})
    chat.button("Try again").click()
    alert.get_by_text("too much to do right now. 9 requests are waiting. Try again in 7 s.").wait_for()
    assert chat.replies.count() == 1

    for body, status, sentence in (
        ("<html>proxy</html>", 502, "A proxy could not reach the server."),
        (text("half a", reason=None, done=False), 200, "The connection broke before the reply was complete."),
        (text("half", reason=None, done=False) + 'data: {"error": {"message": "It died.", "type": "server_error"}}\n\n',
         200, "It died."),
        (sse(reason=None, done=False) + "data: {not json\n\n", 200, "The server sent something that cannot be read."),
    ):  # fmt: skip
        chat.page.unroute_all()
        chat.answer_with(body, status=status)
        chat.button("Try again").click()
        alert.get_by_text(sentence).wait_for()
        assert ("half" in body) == ("half" in chat.replies.last.locator(".markdown").inner_text())
    chat.page.unroute_all()
    chat.answer_with(text("better"))
    chat.button("Try again").click()
    assert chat.reply() == "better"
    assert alert.count() == 0


def test_a_full_storage_is_told(server: Server, open_page: OpenPage) -> None:
    chat = open_page(server, SHORT)
    chat.answer_with(text("A."))
    chat.page.evaluate(
        "() => { Storage.prototype.setItem = () => { throw new DOMException('', 'QuotaExceededError'); }; }"
    )
    assert chat.ask("hello") == "A."
    chat.page.get_by_text("no room left for conversations").wait_for()


def test_storage_that_makes_no_sense_is_ignored(server: Server, open_page: OpenPage) -> None:
    chat = open_page(server)
    chat.page.evaluate(
        """() => {
          const put = (name, value) => localStorage.setItem(`qwen-server:${name}`, value);
          put("settings", "[1]");
          put("panel", "nonsense");
          put("language", "xx");
          put("conversation:a", "{");
          const messages = [{ role: "user", content: { toString: 1 } }, { role: "assistant", tool_calls: 7 }];
          put("conversation:b", JSON.stringify({ id: "b", messages }));
          put("conversation:c", '{"id": "c", "messages": [null]}');
        }"""
    )
    chat.page.reload()
    assert chat.page.locator("#conversations li").count() == 1
    assert chat.users.count() == chat.replies.count() == 1


def test_a_dead_server(locked_server: InProcessServer, open_page: OpenPage) -> None:
    """The last: it ends the server."""
    chat = open_page(locked_server, SHORT, locked=True)
    chat.page.get_by_label("Key", exact=True).fill("sesame")
    chat.page.keyboard.press("Enter")
    chat.ask("hello")
    locked_server.end()
    chat.ask("are you there?")
    alert = chat.replies.last.get_by_role("alert")
    assert "The server does not answer." in alert.inner_text()
    assert chat.users.count() == 2
