"""A GGUF file instead of a checkpoint folder, from the export to the reply."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.contract.errors import CheckpointError, ConfigError
from server.hubs import resolve as hub
from tests.conftest import SMALL, sdk_of
from tests.support.in_process_server import in_process_server
from tests.support.server_process import Server, ServerProcess
from tools.export.run import export


def reply(server: Server) -> str:
    with sdk_of(server) as sdk:
        done = sdk.chat.completions.create(
            model="Qwen", temperature=0, max_tokens=12, messages=[{"role": "user", "content": "Héllo?"}]
        )
    return str(done.choices[0].message.content)


def test_an_exported_file_is_served_alone(demo_checkpoint: Path, server: ServerProcess, tmp_path: Path) -> None:
    target = tmp_path / "my-model.gguf"
    export(demo_checkpoint, target, "bf16")
    with pytest.raises(ConfigError, match="exists already; name a file that does not"):
        export(demo_checkpoint, target, "bf16")
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    with in_process_server(target, *SMALL, "--max-model-len", "2048") as of_file:
        with sdk_of(of_file) as sdk:
            assert next(model.id for model in sdk.models.list()) == "my-model"
        assert reply(of_file) == reply(server)


def test_a_file_of_a_repository_is_fetched_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, tuple[str, ...]]] = []

    def download(model: str, patterns: tuple[str, ...], **_: object) -> Path:
        asked.append((model, patterns))
        return tmp_path

    monkeypatch.setattr(hub, "download", download)
    (tmp_path / "sub").mkdir()
    for name in ("q4_0.gguf", "sub/q8_0-00001-of-00002.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
        assert hub.resolve_checkpoint(f"owner/Qwen-7B-GGUF/{name}") == tmp_path / name
    assert asked == [
        ("owner/Qwen-7B-GGUF", ("q4_0.gguf",)),
        ("owner/Qwen-7B-GGUF", ("sub/q8_0-*-of-00002.gguf",)),
    ]
    with pytest.raises(CheckpointError, match=r"owner/Qwen-7B-GGUF: has no file q2\.gguf"):
        hub.resolve_checkpoint("owner/Qwen-7B-GGUF/q2.gguf")
    with pytest.raises(CheckpointError, match="no such folder, and not a hub id"):
        hub.resolve_checkpoint("owner/name/../x.gguf")
