"""The published plugin benchmark as a suite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.contract.errors import ConfigError
from server.__main__ import main
from tests.support.fake_server import fake_server, fixed
from tools.evaluation import plugin
from tools.evaluation.asking import Answer
from tools.evaluation.suite import ChatCase, ToolCase, load_suite

PROMPT = """Answer the following questions as best you can. You have access to the following APIs:

image_gen: Call this tool to interact with the image_gen API. Parameters: []

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [image_gen, weather]
Action Input: the input to the action
Observation: the result of the action

Begin!

Question: {question}"""
RIGHT = 'Thought: I need the weather.\nAction: weather\nAction Input: {"city": "杭州", "days": 2}\nObservation: 22\n'


def plugin_suite(path: Path) -> Path:
    lines = [
        {"prompt": PROMPT.format(question="杭州的天气怎么样？"), "response": RIGHT},
        {
            "prompt": PROMPT.format(question="Draw a cat."),
            "response": "Thought: x\nAction: image_gen\nAction Input: {}",
        },
        {"prompt": PROMPT.format(question="Who are you?"), "response": "Thought: I now know.\nFinal Answer: Qwen."},
        {"prompt": PROMPT.format(question="Hello!"), "source": "another key"},
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path


def test_the_published_plugin_benchmark_is_a_suite(tmp_path: Path) -> None:
    cases = load_suite(plugin_suite(tmp_path / "positive.jsonl"), ToolCase)
    assert [case.language for case in cases] == ["zh", "en", "en", "en"]
    assert [case.expected and case.expected.name for case in cases] == ["weather", "image_gen", None, None]
    assert cases[0].expected is not None and cases[0].expected.arguments == {"city": "杭州", "days": 2}
    assert cases[0].messages == [{"role": "user", "content": PROMPT.format(question="杭州的天气怎么样？")}]
    with pytest.raises(ConfigError, match="line 1"):
        load_suite(tmp_path / "positive.jsonl", ChatCase)


@pytest.mark.parametrize(
    ("text", "tool", "arguments"),
    [
        (RIGHT, "weather", '{"city": "杭州", "days": 2}'),
        ("Action: weather\nAction Input: {}", "weather", "{}"),
        ("Thought: a\nAction: weather", "weather", ""),
        ("Thought: Action: none is needed\nFinal Answer: Hi", None, ""),
        ("Hello!", None, ""),
    ],
)
def test_replies_are_read_as_the_published_script_reads_them(text: str, tool: str | None, arguments: str) -> None:
    read = plugin.read_reply(Answer(text=text))
    assert (read.tool, read.arguments) == (tool, arguments)


def test_the_benchmark_is_asked_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[dict[str, Any]] = []

    async def reply(number: int, body: dict[str, Any], writer: Any) -> bool:
        asked.append(body)
        text = RIGHT if "杭州" in body["messages"][0]["content"] else "Final Answer: Hello."
        writer.write(fixed(200, {"choices": [{"message": {"content": text}}]}))
        return True

    with fake_server(reply) as fake:
        path = plugin_suite(tmp_path / "all.jsonl")
        assert main(["eval", "tools", "--suite", str(path), "--base-url", f"{fake.url}/v1", "--model", "m"]) == 0
    assert all("tools" not in body and body["stop"] == ["Observation:"] for body in asked)
    last = capsys.readouterr().out.strip().splitlines()[-1].split()
    assert last == ["all", "4", "50.0%", "50.0%", "50.0%", "0.0%"]
