"""The page as a page: what is sent for it, phones, languages, accessibility, and requests to take elsewhere."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from docs import page_screenshot
from server.wire.shapes.chat import ChatCompletionRequest
from tests.support.paths import ROOT
from tests.support.server_process import ServerProcess
from tests.web.driver import SHORT, ChatPage, sse, text

OpenPage = Callable[..., ChatPage]
WEB = ROOT / "server" / "web"
NODE = Path(__file__).parent / "node"


def test_files_are_cached_and_fenced_in(server: ServerProcess) -> None:
    with httpx.Client(base_url=server.url) as http:
        for path in ("/", *(f"/web/{file.name}" for file in WEB.iterdir())):
            reply = http.get(path)
            assert reply.status_code == 200
            assert reply.headers["content-encoding"] == "gzip"
            assert "default-src 'none'" in reply.headers["content-security-policy"]
            assert "unsafe" not in reply.headers["content-security-policy"]
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert reply.headers["cache-control"] == "no-cache"
            again = http.get(path, headers={"If-None-Match": f'"other", {reply.headers["etag"]}'})
            assert (again.status_code, again.content) == (304, b"")
            plain = http.get(path, headers={"Accept-Encoding": "identity"})
            assert plain.content == reply.content
            assert http.head(path).headers["etag"] == reply.headers["etag"]
        for path in ("/web/nothing.js", "/web/", "/web/../app.py", "/web/%2e%2e%2fapp.py", "/web/strings-en.js/x"):
            assert http.get(path).status_code == 404


def test_the_page_is_small_and_asks_no_other_host(server: ServerProcess) -> None:
    sent = sum(len(gzip.compress(file.read_bytes())) for file in WEB.iterdir())
    assert sent < 100_000
    for file in WEB.iterdir():
        content = file.read_text()
        urls = set(re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", content)) - {"http://www.w3.org"}
        assert not urls, file.name
        assert not re.search(r"\.(inner|outer)HTML|insertAdjacentHTML|document\.write|\beval\(|new Function", content)
        assert len(content.splitlines()) < 300, file.name


def test_both_languages_have_every_text() -> None:
    files = [(WEB / f"strings-{tag}.js").read_text() for tag in ("en", "zh")]
    texts = [dict(re.findall(r'^  (\w+): "(.*)",$', file, re.M)) for file in files]
    assert texts[0].keys() == texts[1].keys()
    for key, english in texts[0].items():
        assert sorted(re.findall(r"\{\w+\}", english)) == sorted(re.findall(r"\{\w+\}", texts[1][key])), key
    sources = "".join(file.read_text() for file in WEB.iterdir() if not file.name.startswith("strings"))
    used = set(re.findall(r'\bt\("(\w+)"', sources)) | set(re.findall(r'data-t(?:-\w+)?="(\w+)"', sources))
    assert used <= texts[0].keys()
    assert {key for key in texts[0] if not re.search(rf'"{key}"', sources)} <= {
        key for key in texts[0] if re.match(r"(set|off|call|finish|choice|live|link|theme|panel)_", key)
    }


@pytest.mark.parametrize("is_demo", [True, False])
def test_a_demo_is_called_one(is_demo: bool, browser: Any, server: ServerProcess) -> None:
    settings = httpx.get(f"{server.url}/web/settings.json").json()
    assert settings["demo"] is False
    with browser.new_context(locale="en-US") as context:
        page = context.new_page()
        page.route("**/web/settings.json", lambda route: route.fulfill(json={**settings, "demo": is_demo}))
        page.goto(server.url)
        page.locator("#model:not(:empty)").wait_for()
        page.get_by_text("You are talking to").wait_for()
        assert page.get_by_text("a model of only 6 million parameters").count() == is_demo


def test_defaults_and_limits_are_the_servers(server: ServerProcess) -> None:
    settings = httpx.get(f"{server.url}/web/settings.json").json()
    assert settings["auth"] == {"bearer": False, "basic": False}
    assert settings["defaults"]["top_p"] == 0.8
    model = httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"]
    for name, limits in settings["limits"].items():
        assert name in ChatCompletionRequest.model_fields
        for bound, step in (("minimum", -1), ("maximum", 1)):
            if bound not in limits:
                continue
            body = {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
            for value, status in ((limits[bound], 200), (limits[bound] + step, 400)):
                reply = httpx.post(f"{server.url}/v1/chat/completions", json={**body, name: value})
                assert reply.status_code == status, (name, value, reply.text)


def test_a_phone(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server, SHORT, viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    chat.answer_with(text("A `" + "long_word" * 20 + "`\n\n| a | b | c |\n|---|---|---|\n" + "| wide cell " * 3 + "|"))
    chat.ask("hello " + "x" * 200)
    assert chat.page.evaluate("document.documentElement.scrollWidth") == 360
    assert chat.page.evaluate("document.querySelector('#scroller').scrollWidth <= 360")
    sidebar = chat.page.get_by_role("navigation", name="Conversations")
    assert not sidebar.is_visible()
    chat.page.locator("#open-sidebar").tap()
    sidebar.wait_for()
    chat.until("document.activeElement.id === 'new-chat'")
    chat.page.keyboard.press("Escape")
    chat.until("document.activeElement.id === 'open-sidebar'")
    for name in ("Settings", "Tools", "Server"):
        chat.open_panel(name)
        assert chat.page.evaluate("document.querySelector('#panel').scrollWidth <= 360")
        chat.page.locator("#panel").get_by_role("button", name="Close").tap()
    sizes = chat.page.evaluate(
        "[...document.querySelectorAll('.head button, #composer button, .actions button')]"
        ".filter((button) => button.checkVisibility())"
        ".map((button) => Math.min(button.offsetWidth, button.offsetHeight))"
    )
    assert len(sizes) > 6
    assert min(sizes) >= 32


def test_chinese(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server, SHORT, locale="zh-CN")
    assert chat.page.locator("html").get_attribute("lang") == "zh-CN"
    chat.answer_with(text("你好，**世界**。"))
    chat.page.get_by_placeholder("输入消息").fill("你好")
    chat.page.keyboard.press("Enter")
    chat.page.get_by_role("article", name="助手").get_by_text("世界").wait_for()
    assert "已完成" in chat.page.locator(".stats").inner_text()
    chat.page.get_by_role("button", name="设置", exact=True).click()
    assert chat.page.get_by_label("温度").get_attribute("placeholder")
    visible = chat.page.locator("body").inner_text()
    assert not re.search(r"\b(Settings|Send|Copy|tokens|Server|Export)\b", visible)
    chat.page.get_by_label("语言").select_option("en")
    chat.page.get_by_placeholder("Write a message").wait_for()
    assert "finished" in chat.stats()
    chat.page.reload()
    assert chat.page.get_by_placeholder("Write a message").count() == 1


def test_the_page_follows_only_a_reader_at_the_end(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server, {"sampling": {"temperature": 0}}, viewport={"width": 900, "height": 500})
    chat.answer_with(text("\n\n".join(f"line {i}" for i in range(60))))
    chat.ask("long")
    at_end = (
        "[...document.querySelectorAll('#scroller')].every((s) => s.scrollHeight - s.scrollTop - s.clientHeight < 2)"
    )
    chat.until(at_end)
    chat.page.unroute_all()
    chat.page.evaluate("document.querySelector('#scroller').scrollTop = 100")
    chat.button("To the newest message").wait_for()
    chat.say("tell me a long story")  # the real server streams
    chat.until(at_end)  # who speaks wants to see the answer
    chat.until("document.querySelector('[aria-busy=true] .markdown')?.textContent.length > 5")
    chat.page.mouse.move(450, 250)
    chat.page.mouse.wheel(0, -400)
    chat.button("To the newest message").wait_for()
    place = chat.page.evaluate("document.querySelector('#scroller').scrollTop")
    length = chat.page.evaluate("document.querySelector('[aria-busy=true] .markdown').textContent.length")
    chat.until(f"document.querySelector('[aria-busy=true] .markdown').textContent.length > {length}")
    assert chat.page.evaluate("document.querySelector('#scroller').scrollTop") == place
    chat.button("To the newest message").click()
    chat.until(at_end)
    chat.page.keyboard.press("Escape")
    chat.reply()
    server.wait_idle()


def test_requests_can_be_taken_elsewhere(server: ServerProcess, open_page: OpenPage) -> None:
    """What the page shows as curl and as Python is run, and says the same as the page."""
    settings = {"sampling": {"max_tokens": 12, "temperature": 0, "top_k": 5}, "system": 'It\'s "quoted" \\ $HOME `x`'}
    chat = open_page(server, settings)
    shown = chat.ask("It's: '$PATH' \\n \"q\" 你好 True null")
    chat.button("Request and events").click()
    code = chat.page.locator(".raw pre")
    request = json.loads(code.inner_text())
    chat.page.get_by_role("tab", name="Events").click()
    events = [line.removeprefix("data: ") for line in code.inner_text().splitlines() if line]
    assert events[-1] == "[DONE]"
    content = "".join(c["delta"].get("content", "") for e in events[:-1] for c in json.loads(e)["choices"])
    assert " ".join(content.split()) == " ".join(shown.split()) or content
    chat.page.get_by_role("tab", name="Python").click()
    python = code.inner_text()
    chat.page.get_by_role("tab", name="curl").click()
    curl = code.inner_text()
    assert '"top_k": 5' in curl
    assert request["messages"][0] == {"role": "system", "content": settings["system"]}
    ran = subprocess.run([sys.executable, "-c", python], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.rstrip("\n") == content.rstrip("\n")
    if shutil.which("curl"):
        ran = subprocess.run(["sh", "-c", curl], capture_output=True, text=True, timeout=60, check=True)
        replies = [json.loads(line[6:]) for line in ran.stdout.splitlines() if line.startswith("data: {")]
        assert "".join(c["delta"].get("content", "") for r in replies for c in r["choices"]) == content


def test_the_live_panel(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server, {"sampling": {"max_tokens": 60, "temperature": 0}})
    chat.page.clock.install()  # its readings are two seconds apart
    chat.open_panel("Server")
    numbers = chat.page.locator(".numbers dd")
    chat.until("document.querySelector('.numbers dd').textContent === '0'")
    chat.ask("hello")
    # However short the reply was: the next reading has its tokens.
    chat.page.clock.fast_forward(2000)
    chat.until("parseFloat(document.querySelector('.chart-head').lastChild.textContent.slice(5)) > 1")
    chat.page.clock.fast_forward(2000)
    chat.until("document.querySelector('.chart .line').getAttribute('d').includes('L')")
    assert "peak" in chat.page.locator(".chart").get_attribute("aria-label")

    def busy(route: Any) -> None:
        values = {"num_requests_running": 3, "num_requests_waiting": 2, "kv_cache_usage_perc": 0.256}
        lines = [f'vllm:{name}{{model_name="m n"}} {value}\n' for name, value in values.items()]
        route.fulfill(body="# HELP x\n" + "".join(lines))

    chat.page.route("**/metrics", busy)
    chat.page.clock.fast_forward(2000)
    chat.until("document.querySelector('.numbers dd').textContent === '3'")
    assert numbers.all_inner_texts()[:3] == ["3", "2", "25.6 %"]


def test_its_picture_for_the_readme(server: ServerProcess, open_page: OpenPage, tmp_path: Path) -> None:
    chat = open_page(server)
    requests = chat.answer_with(text("Good day."))
    path = tmp_path / "page.png"
    page_screenshot.take(chat.page, Namespace(url=server.url, panel="tools", prompt=["Hello!"], file=path))
    assert chat.said() == ["What is 37 * 12?", "Hello!"]
    assert requests[1]["tools"][0]["function"]["name"] == "calculator"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size < page_screenshot.MAX_BYTES


@pytest.fixture(scope="module")
def axe() -> str:
    """axe-core from npm."""
    source = NODE / "node_modules" / "axe-core" / "axe.min.js"
    if not source.exists():
        if shutil.which("npm") is None:
            pytest.skip("npm is not installed")
        install = subprocess.run(
            ["npm", "ci", "--no-audit", "--no-fund"], cwd=NODE, capture_output=True, text=True, timeout=120
        )
        if install.returncode:
            pytest.skip(f"npm ci failed: {install.stderr.strip().splitlines()[-1:]}")
    return source.read_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(server: ServerProcess, open_page: OpenPage, axe: str, scheme: str) -> None:
    chat = open_page(server, SHORT, color_scheme=scheme, reduced_motion="reduce")
    assert chat.page.evaluate("document.documentElement.dataset.theme") == scheme
    chat.page.evaluate(axe)

    def check(state: str) -> None:
        found: list[dict[str, Any]] = chat.page.evaluate("axe.run().then((result) => result.violations)")
        described = [(v["id"], [(n["html"][:200], n["failureSummary"]) for n in v["nodes"][:3]]) for v in found]
        assert not described, state

    check("empty")
    function = {"name": "get_weather", "arguments": '{"city": "Rome"}'}
    call = {"index": 0, "id": "c1", "type": "function", "function": function}
    chat.answer_with(
        text(
            "# Title\n\nA [link](https://a.b), `code`.\n\n```py\nx = 1\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n> q"
        ),
        "broken",
        sse({"content": "I need the weather."}, {"tool_calls": [call]}, reason="tool_calls"),
    )
    chat.ask("one")
    chat.button("Request and events").click()
    chat.ask("two")
    assert chat.replies.last.get_by_role("alert").is_visible()
    chat.say("three")
    chat.page.get_by_label("Result of get_weather").wait_for()
    check("conversation")
    for name in ("Settings", "Tools", "Server"):
        chat.open_panel(name)
        if name == "Tools":
            chat.button("+ get_weather").click()
        check(name)
    chat.page.evaluate("document.querySelector('#key-dialog').showModal()")
    check("dialog")
