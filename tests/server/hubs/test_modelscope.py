"""Checkpoints from ModelScope, through ModelScope's library and a hub on this machine."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.contract.errors import CheckpointError, ConfigError
from server.config.sources import load_settings
from server.hubs import download as hub_download
from server.hubs.resolve import describe_checkpoint, resolve_checkpoint
from tests.support.paths import ROOT

FILES = {
    "config.json": b'{"model_type": "qwen"}',
    "qwen.tiktoken": b"IQ== 0\n",
    "qwen_extra.tiktoken": b"",
    "model.safetensors": b"weights",
    "model.safetensors.index.json": b"{}",
    "modeling_qwen.py": b"import os",
    "pytorch_model.bin": b"pickle",
}


class FakeHub(http.server.BaseHTTPRequestHandler):
    """What the library asks of ModelScope for one model, me/tiny, whose branches are master and v1."""

    def do_GET(self) -> None:
        """Lists files, or sends one."""
        url = urllib.parse.urlsplit(self.path)
        wishes = dict(urllib.parse.parse_qsl(url.query))
        revision = wishes.get("Revision", "master")
        known = url.path.startswith("/api/v1/models/me/tiny/") and revision in ("master", "v1")
        files = FILES | {"revision.tiktoken": revision.encode()}
        if not known:
            self._send(404, json.dumps({"Code": 10010205001, "Message": "not found", "Success": False}).encode())
        elif url.path.endswith("/repo/files"):
            listed = [
                {"Path": name, "Name": name, "Type": "blob", "Size": len(data), "Revision": "c0ffee"}
                for name, data in files.items()
            ]
            self._send(200, json.dumps({"Code": 200, "Success": True, "Data": {"Files": listed}}).encode())
        else:
            self._send(200, files[wishes["FilePath"]])

    def _send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A hub on this machine, and an empty cache; one for all tests, as the library reads its environment once."""
    pytest.importorskip("modelscope_hub")
    tmp_path = tmp_path_factory.mktemp("modelscope")
    monkeypatch = pytest.MonkeyPatch()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        yield
        server.shutdown()
        thread.join()
        monkeypatch.undo()


def test_data_is_fetched_and_code_is_not(hub: None) -> None:
    folder = resolve_checkpoint("me/tiny", "modelscope")
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert names == {*FILES, "revision.tiktoken"} - {"modeling_qwen.py", "pytorch_model.bin"}
    assert (folder / "revision.tiktoken").read_text() == "master"


def test_the_configuration_is_fetched_without_weights(hub: None) -> None:
    folder = describe_checkpoint("me/tiny", "", "modelscope", "v1")
    assert (folder / "config.json").exists() and not (folder / "model.safetensors").exists()
    assert (folder / "revision.tiktoken").read_text() == "v1"


def test_what_was_fetched_is_used_offline(hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resolve_checkpoint("me/tiny", "modelscope")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve_checkpoint("me/tiny", "modelscope") == folder
    with pytest.raises(CheckpointError, match="offline mode is on"):
        resolve_checkpoint("me/other", "modelscope")


@pytest.mark.parametrize(("model", "revision"), [("me/other", None), ("me/tiny", "v9")])
def test_what_is_not_there_is_one_sentence(hub: None, model: str, revision: str | None) -> None:
    with pytest.raises(CheckpointError) as caught:
        resolve_checkpoint(model, "modelscope", revision)
    assert "ModelScope" in str(caught.value) and "\n" not in str(caught.value)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    with pytest.raises(ConfigError, match=r"qwen-server\[modelscope\]"):
        resolve_checkpoint("me/tiny", "modelscope")


def test_the_library_brings_no_torch() -> None:
    pytest.importorskip("modelscope_hub")
    code = "import sys, modelscope_hub, modelscope_hub.errors; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "False"


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    for find in (resolve_checkpoint, lambda model, hub, revision: describe_checkpoint(model, "", hub, revision)):
        with pytest.raises(ConfigError, match="is a folder here"):
            find(str(tmp_path), "huggingface", "main")


def test_a_revision_reaches_hugging_face_s_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[object] = []

    def snapshot_download(model: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((model, revision))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    hub_download.download("me/tiny", ["*.json"], hub="huggingface", revision="v1")
    assert asked == [("me/tiny", "v1")]


def test_both_are_settings() -> None:
    settings = load_settings({"model": "qwen/Qwen-7B-Chat", "hub": "modelscope", "revision": "v1.0.0"}, {})
    assert (settings.hub, settings.revision) == ("modelscope", "v1.0.0")
    with pytest.raises(ConfigError, match="--hub"):
        load_settings({"model": "m", "hub": "modelspoke"}, {})
