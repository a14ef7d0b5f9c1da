"""`qwen-server chat` on a real terminal, through tmux: what people type, and what they see."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import SMALL
from tests.support.fake_server import Script, Writer, chunk, event, fake_server, stream, usage
from tests.support.server_process import ServerProcess
from tests.tools.chat.conftest import Open

END = (chunk("", "stop"), event({"choices": [], "usage": usage(5, 4)}), event("[DONE]"))


def says(*pieces: str, pause_s: float = 0.0) -> Script:
    """A server that always gives the same reply."""

    async def script(number: int, body: dict[str, Any], writer: Writer) -> bool:
        return await stream(writer, *map(chunk, pieces), *END, pause_s=pause_s)

    return script


def call(name: str, arguments: str) -> list[bytes]:
    """Events of a call, its arguments in two pieces."""
    half = len(arguments) // 2
    pieces: list[dict[str, Any]] = [
        {"index": 0, "id": "call_1", "type": "function", "function": {"name": name, "arguments": ""}},
        {"index": 0, "function": {"arguments": arguments[:half]}},
        {"index": 0, "function": {"arguments": arguments[half:]}},
    ]
    deltas = [event({"choices": [{"index": 0, "delta": {"tool_calls": [piece]}}]}) for piece in pieces]
    return [*deltas, chunk("", "tool_calls"), event("[DONE]")]


def messages(bodies: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Who said what in the last request."""
    return [(message["role"], message["content"]) for message in bodies[-1]["messages"]]


def test_a_conversation_with_the_real_server(server: ServerProcess, chat: Open) -> None:
    flags = ["--base-url", server.url, "--set", "max_tokens=5 temperature=0"]
    with chat(*flags) as window:
        window.wait("you>")
        window.type("hi", "Enter")
        seen = window.wait("in the context")
        assert re.search(r"\d tokens · first after \d+\.\d\d s .* of 2048 in the context", seen)
        window.type("again", "Enter")
        window.wait(lambda text: text.count("in the context") == 2)
        window.type("C-c")
        window.wait("Ctrl-D leaves.\nyou>")
        window.type("C-d")
        window.wait("exit status 0")
    server.wait_idle()


def test_a_reply_is_shown_while_it_comes_and_typing_does_not_spoil_it(chat: Open) -> None:
    with fake_server(says("One **bold** ", "word, ", "then ", "more.", pause_s=0.4)) as server:
        with chat("--base-url", server.url) as window:
            window.wait("you>")
            window.type("hi", "Enter")
            seen = window.wait("One bold word")
            assert "more." not in seen  # not all at once
            window.type("typed early")
            seen = window.wait("4 tokens")
            assert "One bold word, then more.\n" in seen
            window.wait("you> typed early")  # it was kept for the next line
            assert window.history().count("typed early") == 1


def test_a_question_sent_during_a_reply_is_asked_after_it(chat: Open) -> None:
    with fake_server(says("One ", "two.", pause_s=0.2)) as server:
        with chat("--base-url", server.url) as window:
            window.wait("you>")
            window.type("hi", "Enter")
            window.wait("One")
            window.type("and then?", "Enter")
            window.wait(lambda text: text.count("One two.") == 2)
            window.type("C-d")
            window.wait("exit status 0")
            window.type("echoed")  # the terminal is as it was
            window.wait("echoed")
    assert messages(server.bodies) == [("user", "hi"), ("assistant", "One two."), ("user", "and then?")]


def test_ctrl_c_stops_the_reply_and_not_the_program(chat: Open) -> None:
    gone: list[int] = []

    async def script(number: int, body: dict[str, Any], writer: Writer) -> bool:
        if number:
            return await says("fine")(number, body, writer)
        try:
            await stream(writer, *[chunk(f"w{i} ") for i in range(600)], pause_s=0.05)
        except ConnectionError:
            gone.append(number)
        return False

    with fake_server(script) as server, chat("--base-url", server.url) as window:
        window.wait("you>")
        window.type("hi", "Enter")
        window.wait("w3 ")
        window.type("C-c")
        seen = window.wait("stopped; /retry asks again")
        assert seen.count("w3 ") == 1 and "exit status" not in seen
        window.type("more", "Enter")
        window.wait("fine")
        (_, first), (role, partial), (_, second) = messages(server.bodies)
        assert (first, role, second) == ("hi", "assistant", "more")
        assert partial.startswith("w0 w1 w2 w3")  # what was there was kept
        window.type("/retry", "Enter")
        window.wait("again: more")
        window.wait(lambda text: text.count("fine") == 2)
        assert messages(server.bodies) == [("user", "hi"), ("assistant", partial), ("user", "more")]
        window.wait(lambda _: gone == [0])  # a server learns of it when it next writes


def test_several_lines(chat: Open) -> None:
    with fake_server(says("ok")) as server, chat("--base-url", server.url) as window:
        window.wait("you>")
        window.type("one", "C-j", "two\\", "Enter", "three", "M-Enter", "four", "Enter")
        window.wait("4 tokens")
        assert messages(server.bodies)[0] == ("user", "one\ntwo\nthree\nfour")
        window.type("/multi", "Enter")
        window.wait("Esc Enter sends")
        window.type("a", "Enter", "b", "M-Enter")
        window.wait(lambda text: text.count("4 tokens") == 2)
        assert messages(server.bodies)[2] == ("user", "a\nb")
        window.type("//slash", "M-Enter")
        window.wait(lambda text: text.count("4 tokens") == 3)
        assert messages(server.bodies)[4] == ("user", "/slash")


def test_history_is_kept_and_private(chat: Open, tmp_path: Path) -> None:
    with fake_server(says("ok")) as server:
        with chat("--base-url", server.url) as window:
            window.wait("you>")
            window.type("remember me", "Enter")
            window.wait("4 tokens")
            window.type("/quit", "Enter")
            window.wait("exit status 0")
        with chat("--base-url", server.url) as window:
            window.wait("you>")
            window.type("Up", "Up", "Enter")
            window.wait("4 tokens")
        assert messages(server.bodies) == [("user", "remember me")]
    history = tmp_path / "state" / "qwen-server" / "chat-history"
    assert history.stat().st_mode & 0o077 == 0


def test_tools_settings_and_saved_conversations(chat: Open, tmp_path: Path) -> None:
    async def script(number: int, body: dict[str, Any], writer: Writer) -> bool:
        if number == 0:
            return await stream(writer, chunk("I look."), *call("clock", '{"zone": "UTC"}'), pause_s=0.02)
        return await stream(writer, chunk("It is noon."), *END)

    tools, saved = tmp_path / "tools.json", tmp_path / "saved.json"
    tools.write_text('{"tools": [{"name": "clock", "parameters": {"type": "object"}}]}')
    with fake_server(script) as server, chat("--base-url", server.url) as window:
        window.wait("you>")
        window.type("/system Be brief.", "Enter", f"/tools {tools}", "Enter", ":conf temperature=0.5", "Enter")
        window.wait("settings: temperature=0.5")
        window.type("time?", "Enter")
        seen = window.wait("result of clock>")
        assert "thinks: I look." in seen and '→ clock {"zone": "UTC"}' in seen
        window.type("12:00", "Enter")
        window.wait("It is noon.")
        window.type(":his", "Enter")
        window.wait("tool: 12:00")
        window.type(f"/save {saved}", "Enter")
        window.wait("saved 4 messages")
        window.type("/clear", "Enter", "/retry", "Enter")
        window.wait("There is no question yet")
        window.type(f"/load {saved}", "Enter", "thanks", "Enter")
        window.wait(lambda text: text.count("It is noon.") == 3)
        last = server.bodies[-1]
    assert [m["role"] for m in last["messages"]] == ["system", "user", "assistant", "tool", "assistant", "user"]
    assert last["messages"][3] == {"role": "tool", "tool_call_id": "call_1", "content": "12:00"}
    assert last["messages"][2]["tool_calls"][0]["function"] == {"name": "clock", "arguments": '{"zone": "UTC"}'}
    assert (last["temperature"], last["tools"][0]["function"]["name"]) == (0.5, "clock")
    assert json.loads(saved.read_text())["model"] == "fake"


def test_a_result_that_is_refused_drops_the_call(chat: Open, tmp_path: Path) -> None:
    async def script(number: int, body: dict[str, Any], writer: Writer) -> bool:
        return await stream(writer, *call("clock", "{}"))

    tools = tmp_path / "tools.json"
    tools.write_text('[{"name": "clock"}]')
    with fake_server(script) as server, chat("--base-url", server.url, "--tools", str(tools)) as window:
        window.wait("you>")
        window.type("time?", "Enter")
        window.wait("result of clock>")
        window.type("C-c")
        window.wait("the call is dropped")
        window.type("other", "Enter")
        window.wait(lambda text: text.count("result of clock>") == 2)
        assert messages(server.bodies) == [("user", "other")]


def test_a_server_that_dies_in_a_reply(chat: Open) -> None:
    async def dying(number: int, body: dict[str, Any], writer: Writer) -> bool:
        if number == 0:
            head = b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            data = chunk("half a")
            writer.write(head + f"{len(data):x}\r\n".encode() + data + b"\r\n")
            await asyncio.sleep(0.2)
            return False
        return False if number == 1 else await says("whole")(number, body, writer)

    with fake_server(dying) as server, chat("--base-url", server.url) as window:
        window.wait("you>")
        window.type("hi", "Enter")
        window.wait("half a")
        seen = window.wait("The connection broke in the middle of the reply")
        assert "not lost: /retry asks it" in " ".join(seen.split())
        window.type("/retry", "Enter")
        window.wait("hung up")
        window.type("/retry", "Enter")
        window.wait("whole")
        assert messages(server.bodies) == [("user", "hi")]


def test_a_reply_taller_than_the_screen_is_printed_once(chat: Open) -> None:
    lines = [f"- item {i}\n" for i in range(60)]
    code = ["\n```python\n", *[f"x{i} = {i}\n" for i in range(40)], "```\n\n", "| a | b |\n|--|--|\n| 1 | 2 |\n\nLast."]
    with fake_server(says("First.\n\n", *lines, *code, pause_s=0.01)) as server:
        with chat("--base-url", server.url) as window:
            window.wait("you>")
            window.type("hi", "Enter")
            seen = window.wait("4 tokens")
    items = re.findall(r"item (\d+)\b", seen)
    assert items == [str(i) for i in range(60)]
    assert re.findall(r"x(\d+) = \1\b", seen) == [str(i) for i in range(40)]
    assert seen.count("First.") == seen.count("Last.") == 1


def test_a_reply_cannot_command_the_terminal(chat: Open) -> None:
    evil = "\x1b]0;owned\x07 \x1b[2J\x9b31m [link](http://evil.example) [bold]x[/bold]"
    with fake_server(says(evil)) as server, chat("--base-url", server.url) as window:
        window.wait("you>")
        window.type("hi", "Enter")
        seen = window.wait("4 tokens")
        assert "/help lists the commands" in seen  # the screen was not cleared
        assert "http://evil.example" in seen and "[bold]x[/bold]" in seen
        assert "owned" not in window._run("display-message", "-p", "#{pane_title}")


def test_nobody_listens(chat: Open) -> None:
    with chat("--base-url", "http://127.0.0.1:1") as window:
        seen = window.wait("exit status 1")
    assert "Nobody answers at http://127.0.0.1:1/v1." in " ".join(seen.split())


@pytest.mark.slow
def test_a_server_for_one_chat_that_dies(chat: Open, demo_checkpoint: Path) -> None:
    with chat(str(demo_checkpoint), "--set", "ignore_eos=true max_tokens=1500", "--", *SMALL) as window:
        window.wait("you>", 60)
        window.type("hi", "Enter")
        time.sleep(0.5)
        (process,) = psutil.Process(window.child_pid()).children()
        process.kill()
        seen = " ".join(window.wait("its log is").split())
        assert "The server of this chat has ended: " in seen
        window.type("C-d")
        window.wait("exit status 0")


@pytest.mark.parametrize("way", ["leaves", pytest.param("is killed", marks=pytest.mark.slow)])
def test_a_server_for_one_chat_ends_with_it(chat: Open, demo_checkpoint: Path, way: str) -> None:
    with chat(str(demo_checkpoint), "--set", "ignore_eos=true max_tokens=1500", "--", *SMALL) as window:
        window.wait("you>", 60)
        for number in (1, 2):  # Ctrl-C does not reach the server, which answers again
            window.type("hi", "Enter")
            time.sleep(0.5)
            window.type("C-c")
            window.wait(lambda text, number=number: text.count("asks again") == number)
        assert "stopped; /retry" in window.history()
        pid = window.child_pid()
        family = psutil.Process(pid).children(recursive=True)
        assert len(family) >= 2  # the server and its engine
        if way == "leaves":
            window.type("C-d")
            window.wait("exit status 0")
        else:
            os.kill(pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive
