"""What the terminal chat is made of, without a terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from tools.chat.client import Reply
from tools.chat.commands import HELP, Commands, Next
from tools.chat.conversation import Conversation, as_path, read_tools
from tools.chat.errors import ChatError
from tools.chat.markdown_stream import MarkdownStream, printable, stable_blocks
from tools.chat.published_commands import translate
from tools.chat.settings import NAMES, parse_assignments

MARKDOWN = """# Title

A paragraph of
two lines with `code`.

1. one

2. two
   more of two

   - nested

10. ten

| a | b |
|---|---|
| 1 | 2 |

```python
x = 1

y = "**not bold**"
```
> quoted
lazily

Setext
======
中文，一段。

***
"""


def drawn(text: str, pieces: list[str]) -> str:
    """What stays on the screen of a text that came in pieces."""
    out = io.StringIO()
    console = Console(file=out, width=60, height=12, force_terminal=False)
    stream = MarkdownStream(console)
    so_far = ""
    for piece in pieces:
        so_far += piece
        stream.update(so_far)
        stream.settle()
    assert so_far == text
    stream.end()
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def test_blocks_are_drawn_the_same_however_they_came() -> None:
    letters = drawn(MARKDOWN, list(MARKDOWN))
    assert drawn(MARKDOWN, MARKDOWN.splitlines(keepends=True)) == letters
    for width in (2, 3, 7, 50):
        pieces = [MARKDOWN[i : i + width] for i in range(0, len(MARKDOWN), width)]
        assert drawn(MARKDOWN, pieces) == letters
    for item in (" 1 one\n", " 2 two more of two\n", " 3 ten\n"):  # one list: its numbers go on
        assert item in letters
    assert 'y = "**not bold**"' in letters and letters.count("中文，一段。") == 1


@pytest.mark.parametrize(
    "text",
    [
        "Use the <br> tag; List<String> x = new ArrayList<String>();",
        "if a<b and c>d",
        "<html>\n<body>\nHello\n</body>\n</html>",
        "<think>hm</think>",
        "<!-- why -->",
    ],
)
def test_what_looks_like_html_is_shown(text: str) -> None:
    shown = drawn(text, [text])
    assert "".join(shown.split()) == "".join(text.split())


def test_only_what_cannot_change_is_stable() -> None:
    for text in ("", "a", "a\n", "a\n\n", "a\n\nb", "```\nx\n\ny\n", "- a\n\n- b\n", "| a |\n|---|\n| 1 |\n"):
        assert stable_blocks(text) == []
    assert stable_blocks("a\n\nb\nc") == ["a\n\n"]
    assert stable_blocks("\n\na\n\nb\n\n```\nc\n") == ["\n\na\n\n", "b\n\n"]


def test_printable() -> None:
    assert printable("a\x1b[31m\tb\n\x9b1m\x00\x7f\r中🙂") == "a[31m\tb\n1m中🙂"


def test_assignments() -> None:
    text = 'temperature=0.2 stop=["a b", "c"] truncation=auto seed= max-tokens=5'
    assert parse_assignments(text) == {
        "temperature": 0.2,
        "stop": ["a b", "c"],
        "truncation": "auto",
        "seed": None,
        "max_tokens": 5,
    }
    assert {"temperature", "top_p", "response_format", "structured_outputs", "tool_choice"} <= set(NAMES)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("temperature", "has no '='"),
        ("temperature=-1", "temperature: "),
        ("top_p=high", "top_p: "),
        ("messages=[]", "no setting 'messages'"),
        ("stream=false", "no setting 'stream'"),
        ("topp=1", "did you mean top_p?"),
    ],
)
def test_assignments_that_are_none(text: str, complaint: str) -> None:
    with pytest.raises(ChatError, match=complaint.replace("?", r"\?")):
        parse_assignments(text)


def test_a_conversation_is_saved_as_a_request(tmp_path: Path) -> None:
    conversation = Conversation("m", system="S", tools=[{"type": "function", "function": {"name": "f"}}])
    conversation.settings["temperature"] = 0.5
    conversation.ask("一")
    conversation.answer("thought", [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}])
    conversation.add_result("c", "r")
    path = tmp_path / "saved.json"
    conversation.save(path)
    conversation.save(path)  # over itself
    assert json.loads(path.read_text()) == conversation.body()
    other = Conversation("n")
    other.load(path)
    assert other.body() == {**conversation.body(), "model": "n"}
    assert list(tmp_path.iterdir()) == [path]


def test_other_files_are_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "precious.txt"
    path.write_text("thesis")
    with pytest.raises(ChatError, match="no saved conversation; choose another name"):
        Conversation("m").save(path)
    assert path.read_text() == "thesis"
    for name in ("none/x.json", "x" * 300, "precious.txt/x"):
        with pytest.raises(ChatError, match="Cannot write"):
            Conversation("m").save(tmp_path / name)
    for folder in (tmp_path, Path("/")):
        with pytest.raises(ChatError, match="no saved conversation"):
            Conversation("m").save(folder)
    assert list(tmp_path.iterdir()) == [path]


def test_half_a_surrogate_pair_does_not_lose_the_rest(tmp_path: Path) -> None:
    """JSON may hold one, and so may what is pasted."""
    path = tmp_path / "x.json"
    path.write_text('{"messages": [{"role": "user", "content": "caf\\udce9!"}]}')
    conversation = Conversation("m")
    conversation.load(path)
    conversation.save(path)
    assert json.loads(path.read_text())["messages"][0]["content"] == "caf?!"


def test_the_home_of_nobody() -> None:
    assert as_path("~/x") == Path.home() / "x"
    with pytest.raises(ChatError, match="no home directory for ~no-such-user/x"):
        as_path("~no-such-user/x")


@pytest.mark.parametrize("text", ["{", "3", "{}", '{"messages": [{"role": "king"}]}', "[1]", "[" * 100_000])
def test_files_that_hold_no_conversation_change_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    conversation = Conversation("m", system="S", messages=[{"role": "user", "content": "a"}])
    with pytest.raises(ChatError):
        conversation.load(path)
    assert (conversation.system, len(conversation.messages)) == ("S", 1)


def test_a_bare_list_of_messages_can_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    parts = [{"type": "text", "text": "S"}]
    path.write_text(json.dumps([{"role": "system", "content": parts}, {"role": "user", "content": "a"}]))
    conversation = Conversation("m")
    conversation.load(path)
    assert (conversation.system, len(conversation.messages)) == ("S", 1)


@pytest.mark.parametrize(
    "value",
    [
        [{"name": "f"}],
        [{"type": "function", "function": {"name": "f"}}],
        {"tools": [{"name": "f"}]},
        {"functions": [{"name": "f"}]},
        {"name": "f"},
    ],
)
def test_tools_in_the_shapes_people_have(tmp_path: Path, value: object) -> None:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps(value))
    assert read_tools(path) == [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize("value", [{}, [{}], [3], "f", [{"function": 3}], [{"name": 3}], None])
def test_files_that_hold_no_tools(tmp_path: Path, value: object) -> None:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps(value))
    with pytest.raises(ChatError, match="holds no list of functions"):
        read_tools(path)


def test_a_question_can_be_taken_back() -> None:
    conversation = Conversation("m")
    assert conversation.take_back() is None
    conversation.ask("a")
    conversation.answer("b", [])
    conversation.ask("c")
    conversation.answer("", [{"id": "1"}])
    conversation.add_result("1", "r")
    assert conversation.take_back() == conversation.draft == "c"
    assert [message["content"] for message in conversation.messages] == ["a", "b"]


def test_a_reply_of_a_hostile_server_stays_small() -> None:
    reply = Reply()
    reply.take({"choices": [{"delta": {"tool_calls": [{"index": 10**9, "function": {"name": "f"}}]}}]})
    assert len(reply.calls) <= 64


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (":help", "/help"), (":h", "/help"), (":exit", "/quit"), (":quit", "/quit"), (":q", "/quit"),
        (":clear", "/cls"), (":cl", "/cls"),
        (":clear-his", "/clear"), (":clh", "/clear"), (":history", "/history"), (":his", "/history"),
        (":seed", "/seed"), (":seed 42", "/seed 42"), (":conf", "/set"), (":reset-conf", "/reset"),
        (":conf top_p=0.5 max_new_tokens=9", "/set top_p=0.5 max_tokens=9"),
        (":conf do_sample=False", "/set temperature=0"), (":conf do_sample=True seed=None", "/set temperature= seed="),
        (" :q ", "/quit"), (":-)", ":-)"), (":questions", ":questions"), ("a :q", "a :q"), ("/help", "/help"),
    ],
)  # fmt: skip
def test_the_published_chat_s_commands(theirs: str, ours: str) -> None:
    assert translate(theirs) == ours


def test_what_is_set_and_what_was_said_can_be_seen() -> None:
    said: list[str] = []
    conversation = Conversation("Qwen")
    commands = Commands(conversation, said.append)
    assert commands.run("/history") is Next.NOTHING
    conversation.ask("time?")
    conversation.answer("I look.", [{"id": "c", "function": {"name": "clock", "arguments": "{}"}}])
    conversation.add_result("c", "noon")
    conversation.answer("It is noon.", [])
    commands.run("/history")
    assert said == [
        "nothing was said yet",
        "user: time?\nassistant: I look.\n  → clock {}\ntool: noon\nassistant: It is noon.",
    ]
    commands.run("/seed 7")
    commands.run("/set top_p=0.5")
    assert conversation.settings == {"seed": 7, "top_p": 0.5}
    commands.run("/seed")
    commands.run("/reset")
    assert conversation.settings == {}
    assert said[2:] == ["seed: 7", "settings: seed=7 top_p=0.5", "seed: 7", "settings: the defaults of the server"]
    assert commands.run("/cls") is Next.CLEAR_SCREEN
    with pytest.raises(ChatError, match="seed: "):
        commands.run("/seed soon")


def test_help_lists_every_command() -> None:
    names = Commands(Conversation("Qwen"), lambda text: None).names
    assert {usage.split()[0] for usage in HELP} == set(names) - {"/exit"}
