"""The chat page as its user sees it: by labels and roles, so that the tests hold it to having them."""

from __future__ import annotations

import json
import re
import time
from typing import Any

SHORT = {"sampling": {"max_tokens": 12, "temperature": 0}}


class ChatPage:
    """A page that is open.

    Args:
        page: of playwright.
        url: of the server.
        problems: noted so far; must be none in the end.
    """

    def __init__(self, page: Any, url: str, problems: list[str]) -> None:
        self.page = page
        self.url = url
        self.problems = problems

    def open(self) -> None:
        self.page.goto(self.url)
        self.until("document.querySelector('#messages').childElementCount > 0")

    def until(self, expression: str, timeout_s: float = 30) -> None:
        """Waits for an expression; the page's own policy forbids playwright's way, which evaluates text in it."""
        deadline = time.monotonic() + timeout_s
        while not self.page.evaluate(expression):
            assert time.monotonic() < deadline, expression
            self.page.wait_for_timeout(20)

    @property
    def input(self) -> Any:
        return self.page.locator("#composer-input")

    @property
    def users(self) -> Any:
        return self.page.get_by_role("article", name="You")

    def said(self) -> list[str]:
        """The user's messages."""
        texts = self.page.get_by_role("article", name="You").locator(".bubble").all_inner_texts()
        return [str(text) for text in texts]

    @property
    def replies(self) -> Any:
        return self.page.get_by_role("article", name="Assistant")

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True)

    def say(self, text: str) -> None:
        self.input.fill(text)
        self.input.press("Enter")

    def ask(self, text: str) -> str:
        """Says something and returns the reply, once it is complete."""
        self.say(text)
        return self.reply()

    def reply(self) -> str:
        """Waits for the last reply to end, and returns it."""
        last = self.replies.last
        last.wait_for()
        self.until("!document.querySelector('#messages [aria-busy=true]') && document.querySelector('#stop').hidden")
        return str(last.locator(".markdown").inner_text())

    def stats(self) -> str:
        return str(self.replies.last.locator(".stats").inner_text())

    def open_panel(self, name: str) -> None:
        self.page.locator(".head").get_by_role("button", name=name, exact=True).click()
        self.page.get_by_role("tab", name=name, exact=True, selected=True).wait_for()

    def field(self, label: str) -> Any:
        return self.page.get_by_label(re.compile(f"^{re.escape(label)}"))

    def answer_with(self, *bodies: str, status: int = 200, headers: dict[str, str] | None = None) -> list[Any]:
        """Answers chat requests in the server's place, the last body again and again; returns their JSON."""
        requests: list[Any] = []
        kind = "text/event-stream" if status == 200 else "application/json"

        def fulfil(route: Any) -> None:
            requests.append(route.request.post_data_json)
            body = bodies[min(len(requests), len(bodies)) - 1]
            route.fulfill(status=status, headers={"Content-Type": kind, **(headers or {})}, body=body)

        self.page.route("**/v1/chat/completions", fulfil)
        return requests


def sse(*deltas: dict[str, Any], reason: str | None = "stop", done: bool = True) -> str:
    """A stream as the server writes it."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    pieces: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, *deltas]
    chunks = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in pieces]
    if reason:
        chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        usage = {"prompt_tokens": 9, "completion_tokens": len(deltas), "prompt_tokens_details": {"cached_tokens": 4}}
        chunks.append({**head, "choices": [], "usage": usage})
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + ("data: [DONE]\n\n" if done else "")


def text(content: str, **options: Any) -> str:
    """A stream of a text, in small pieces."""
    return sse(*({"content": content[i : i + 5]} for i in range(0, len(content), 5)), **options)
