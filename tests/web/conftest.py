"""A browser, and a page in it that must stay clean: no script errors, no word to another host."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.server_process import ServerProcess
from tests.web.driver import ChatPage

# Set it to look at the states the tests bring the page into: each test leaves its last one there as a PNG.
SCREENSHOTS = os.environ.get("WEB_TEST_SCREENSHOTS")


@pytest.fixture(scope="package")  # not longer: while it runs, no asynchronous test can
def browser() -> Iterator[Any]:
    """Debian's chromium, or another that is installed."""
    api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no chromium is installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, request: pytest.FixtureRequest) -> Iterator[Callable[..., ChatPage]]:
    """Opens the chat page of a server in a fresh profile and with settings made before.

    A locked server says nothing about itself before it gets a key. Options are of the browser's context.
    """
    contexts = []
    pages: list[ChatPage] = []
    problems: list[str] = []

    def opener(
        server: ServerProcess, settings: dict[str, Any] | None = None, *, locked: bool = False, **options: Any
    ) -> ChatPage:
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, "locale": "en-US", **options})
        context.set_default_timeout(30_000)
        contexts.append(context)
        page = context.new_page()
        watch(page, server.url, problems)
        chat = ChatPage(page, server.url, problems)
        pages.append(chat)
        if settings is not None:
            stored = json.dumps(json.dumps(settings))
            page.add_init_script(f"localStorage.getItem('qwen-server:settings') ?? "
                                 f"localStorage.setItem('qwen-server:settings', {stored})")  # fmt: skip
        chat.open()
        if not locked:
            chat.until("document.querySelector('#model').textContent")
        return chat

    yield opener
    for chat in pages:
        chat.page.unroute_all()
    if SCREENSHOTS:
        for index, chat in enumerate(pages):
            chat.page.screenshot(path=Path(SCREENSHOTS) / f"{request.node.name}-{index}.png")
    for context in contexts:
        context.close()
    assert not problems


@pytest.fixture(scope="package")
def modules(browser: Any, server: ServerProcess) -> Iterator[Any]:
    """A page for questions to its modules, which leave it as it is."""
    with browser.new_context() as context:
        page = context.new_page()
        ChatPage(page, server.url, []).open()
        yield page


def watch(page: Any, url: str, problems: list[str]) -> None:
    """Notes what a clean page never does."""

    def on_console(message: Any) -> None:
        # The browser itself writes a line for each refused or failed request; tests of errors cause them.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            problems.append(message.text)

    def on_request(request: Any) -> None:
        if urlsplit(request.url).scheme not in ("blob", "data") and not request.url.startswith(url):
            problems.append(f"a request to {request.url}")

    page.on("console", on_console)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", on_request)
