"""`qwen-server batch`: replies in the order of the input, and no line done twice however often it is started."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from server.__main__ import build_parser
from server.batches.batch import BATCH
from tests.support.light_server import LightServer, light_server
from tools.batch import command
from tools.batch.client import BatchClient, BatchCommandError


def requests(path: Path, *lines: dict[str, Any]) -> Path:
    texts = [
        json.dumps({"method": "POST", "url": "/v1/completions", **line, "body": {"max_tokens": 4, **line["body"]}})
        for line in lines
    ]
    path.write_text("\n\n".join(texts))
    return path


def line(id: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": id, "body": {"prompt": id, **body}}


async def batch(server: LightServer, *words: str | Path) -> int:
    parsed = vars(build_parser().parse_args(["batch", *map(str, words), "--base-url", server.url]))
    del parsed["command"]
    return await asyncio.to_thread(command.run, argparse.Namespace(**parsed))


def results(path: Path) -> list[tuple[str, int]]:
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    return [(line["custom_id"], line["response"]["status_code"]) for line in lines]


async def test_replies_come_in_the_order_of_the_input(
    demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_MAX_PART_LINES", 2)
    chat = {**line("c"), "url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "hi"}]}}
    source = requests(tmp_path / "in", line("b"), chat, line("a", n=0), line("d"), line("e"))
    async with light_server(demo_checkpoint, tmp_path) as server:
        assert await batch(server, source, tmp_path / "out") == 1
        assert results(tmp_path / "out") == [("b", 200), ("c", 200), ("a", 400), ("d", 200), ("e", 200)]
        told = capsys.readouterr().err
        assert "5 of 5 lines" in told and "1 of 5 lines failed" in told
        assert await server.services.store.all_of("file") == [], "nothing is left that nobody needs"
        assert len(await server.services.store.all_of(BATCH)) == 3
        assert await batch(server, requests(source, line("b")), tmp_path / "out", "--quiet") == 0
        assert results(tmp_path / "out") == [("b", 200)] and not capsys.readouterr().err


async def test_started_again_it_goes_on(demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = requests(tmp_path / "in", line("a"), line("b"))
    async with light_server(demo_checkpoint, tmp_path) as server:
        with monkeypatch.context() as interrupted:

            def interrupt(*_: object) -> int:
                raise KeyboardInterrupt

            interrupted.setattr(command, "_write", interrupt)
            assert await batch(server, source, tmp_path / "out") == 130
        (before,) = await server.services.store.all_of(BATCH)
        assert await batch(server, source, tmp_path / "out") == 0
        assert [found.id for found in await server.services.store.all_of(BATCH)] == [before.id]
        assert results(tmp_path / "out") == [("a", 200), ("b", 200)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no lines"),
        ('{"custom_id": "a"}', "line 1 is no request"),
        ('\n["a"]', "line 2 is no request"),
        ('{"custom_id": "a", "url": "u"}\n' * 2, "line 2: custom_id 'a' is that of an earlier line"),
    ],
    ids=["empty", "no url", "a list", "twice"],
)
def test_what_is_no_input_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "in").write_text(text)
    with pytest.raises(BatchCommandError, match=says):
        command._read(tmp_path / "in")


async def test_what_the_server_refuses_is_told(demo_checkpoint: Path, tmp_path: Path) -> None:
    source = requests(tmp_path / "in", {**line("a"), "method": "GET"})
    async with light_server(demo_checkpoint, tmp_path) as server:
        with pytest.raises(BatchCommandError, match="does not take the input: line 1 of its part: 'method'"):
            await batch(server, source, tmp_path / "out")


def test_a_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.batch.client._NUM_TRIES", 1)
    monkeypatch.setattr("tools.batch.client.time.sleep", lambda _: None)
    client = BatchClient("http://127.0.0.1:9", None)
    with pytest.raises(BatchCommandError, match=r"http://127\.0\.0\.1:9/v1/ does not answer"):
        client.find_or_create("mark", [])
    client.close()
