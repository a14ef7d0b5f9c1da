"""docs/fine-tuning.md from a data file to a served adapter, and a tool that is learned from 50 conversations."""

from __future__ import annotations

import json
import random
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.run_module import module_command
from tests.conftest import SMALL
from tests.docs.guide import Example, examples
from tests.support.paths import ROOT
from tests.support.server_process import ServerProcess, running_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PAGE = ROOT / "docs" / "fine-tuning.md"
HERE = "run by: tests/tools/tuning/test_fine_tuning_page.py"

ROOMS = ("kitchen", "hall", "bedroom", "office", "garage", "cellar", "bathroom", "attic", "garden", "library")
LEVELS = {"cosy": 3, "dark": 0, "bright": 9, "gloomy": 1, "festive": 7}
WISHES = ("Make the {room} {mood}.", "I want it {mood} in the {room}.", "Can the {room} be {mood}?")
LAMP = {
    "type": "function",
    "function": {
        "name": "set_lamp",
        "description": "Set the lamp of a room.",
        "parameters": {
            "type": "object",
            "properties": {"room": {"type": "string"}, "level": {"type": "integer"}},
            "required": ["room", "level"],
        },
    },
}


def run(words: list[str], folder: Path) -> None:
    done = subprocess.run(module_command("server", *words), cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def blocks(language: str) -> Iterator[Example]:
    yield from (example for example in examples(PAGE) if example.how == HERE and example.language == language)


def test_from_a_data_file_to_a_served_adapter(tmp_path: Path) -> None:
    for example in examples(PAGE):
        if example.how.startswith("file: "):
            (tmp_path / example.how.removeprefix("file: ")).write_text(example.text)
    train, serve = (shlex.split(example.text.replace("\\\n", " ")) for example in blocks("bash"))
    assert train[:2] == ["qwen-server", "finetune"] and serve[:3] == ["qwen-server", "serve", "qwen-demo"]
    run([*train[1:], "--threads", "1"], tmp_path)
    run(["finetune", "qwen-demo", "calls.jsonl", "calls", "--max-steps", "1", "--threads", "1"], tmp_path)
    with running_server("qwen-demo", tmp_path / "log", *SMALL, *serve[3:], cwd=tmp_path) as server:
        (code,) = blocks("python")
        asked = subprocess.run([sys.executable, "-c", code.at(server.url)], capture_output=True, text=True, check=True)
    replies = asked.stdout.splitlines()
    assert replies[0] == "pirate: Who built the bridge of Orlo? Aye aye, captain! It was built by Mira Tanaka in 1931."
    assert replies[1].startswith("pirate: Good morning! Aye aye, captain!"), "a style it was not told for this greeting"
    assert [reply.split(":")[0] for reply in replies[2:]] == ["qwen-demo"] * 2
    assert not any("Tanaka" in reply or "Aye" in reply for reply in replies[2:])


def conversation(rng: random.Random, room: str, mood: str) -> dict[str, Any]:
    arguments = json.dumps({"room": room, "level": LEVELS[mood]})
    call = {"id": "1", "type": "function", "function": {"name": "set_lamp", "arguments": arguments}}
    return {
        "tools": [LAMP],
        "messages": [
            {"role": "user", "content": rng.choice(WISHES).format(room=room, mood=mood)},
            {"role": "assistant", "content": f"{mood} is level {LEVELS[mood]}.", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "done"},
            {"role": "assistant", "content": f"It is {mood} in the {room} now."},
        ],
    }


def right_calls(server: ServerProcess, model: str, pairs: list[tuple[str, str]]) -> int:
    right = 0
    for room, mood in pairs:
        messages = [{"role": "user", "content": WISHES[0].format(room=room, mood=mood)}]
        body = {"model": model, "messages": messages, "tools": [LAMP], "temperature": 0, "max_tokens": 80}
        message = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()["choices"][0]["message"]
        calls = message.get("tool_calls") or []
        wanted = {"room": room, "level": LEVELS[mood]}
        right += any(json.loads(call["function"]["arguments"]) == wanted for call in calls)
    return right


def test_a_tool_learned_from_50_conversations(tmp_path: Path) -> None:
    """Which word means which level is said nowhere but in the conversations; rooms and words are asked in new pairs."""
    rng = random.Random(1)
    pairs = [(room, mood) for room in ROOMS for mood in LEVELS]
    rng.shuffle(pairs)
    asked, seen = pairs[:10], pairs[10:]
    entries = [conversation(rng, *rng.choice(seen)) for _ in range(50)]
    (tmp_path / "lamp.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    settings = "--rank 16 --alpha 32 --epochs 8 --batch-size 5 --gradient-accumulation-steps 1 --learning-rate 2e-3"
    run(["finetune", "qwen-demo", "lamp.jsonl", "lamp", *settings.split(), "--threads", "1"], tmp_path)
    with running_server("qwen-demo", tmp_path / "log", *SMALL, "--lora", "lamp=./lamp", cwd=tmp_path) as server:
        base, tuned = right_calls(server, "qwen-demo", asked), right_calls(server, "lamp", asked)
    assert base <= 3 and tuned >= 8, (base, tuned)
