"""A page of another origin, in a real browser: what it can send without asking first must not be served."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.support.server_process import ServerProcess

BODY = '{"prompt": "hi", "max_tokens": 3, "ignore_eos": true}'
# None of them makes the browser ask for permission: there is no Content-Type, or one that forms have, too.
SENDS = {
    "blob": "fetch(url, {method: 'POST', mode: 'no-cors', body: new Blob([body])})",
    "bytes": "fetch(url, {method: 'POST', mode: 'no-cors', body: new TextEncoder().encode(body)})",
    "text": "fetch(url, {method: 'POST', mode: 'no-cors', body})",
    "beacon": "Promise.resolve(navigator.sendBeacon(url, new Blob([body])))",
}


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<title>somebody else's</title>")

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Page) as pages:
        thread = threading.Thread(target=pages.serve_forever)
        thread.start()
        yield f"http://localhost:{pages.server_address[1]}/"
        pages.shutdown()
        thread.join()


@pytest.mark.parametrize("way", SENDS)
def test_it_cannot_make_the_server_generate(browser: Any, server: ServerProcess, elsewhere: str, way: str) -> None:
    page = browser.new_page()
    page.set_default_timeout(20_000)
    refused, served = server.metric("qwen:requests_rejected_total"), server.metric("vllm:generation_tokens_total")
    page.goto(elsewhere)
    page.evaluate(f"([url, body]) => {SENDS[way]}", [f"{server.url}/v1/completions", BODY])
    for _ in range(200):  # a beacon is sent when the browser finds the time
        if server.metric("qwen:requests_rejected_total") > refused:
            break
        page.wait_for_timeout(25)
    assert server.metric("qwen:requests_rejected_total") == refused + 1
    assert server.metric("vllm:generation_tokens_total") == served
    page.close()
