"""Folders that people name and that are no checkpoints: each is told what it is, by every command that reads one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from model.contract.errors import CheckpointError
from model.contract.files.model_config import read_model_config
from server.__main__ import main
from server.hubs import resolve as hub

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b12\nsize 9\n"


def empty(folder: Path) -> None:
    (folder / ".gitattributes").write_text("*.bin filter=lfs\n")


def adapter(folder: Path) -> None:
    config = {"base_model_name_or_path": "Qwen/Qwen-7B-Chat", "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(b"x" * 4096)


def gguf(folder: Path) -> None:
    (folder / "qwen-7b-q4_0.gguf").write_bytes(b"GGUF")


def two_models(folder: Path) -> None:
    for name in ("a", "b-00001-of-00002", "b-00002-of-00002"):
        (folder / f"{name}.gguf").write_bytes(b"GGUF")


def of_type(model_type: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))

    return write


def snapshot(folder: Path) -> None:
    inner = folder / "snapshots" / "abc"
    inner.mkdir(parents=True)
    (inner / "config.json").write_text("{}")


def cache(folder: Path) -> None:
    (folder / "models--Qwen--Qwen-7B").mkdir()
    snapshot(folder / "models--Qwen--Qwen-7B")


def nameless_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


FOLDERS = [
    (empty, "is empty"),
    (adapter, r"an adapter of Qwen/Qwen-7B-Chat \(LORA\), not a whole model; merge it"),
    (gguf, r"qwen-7b-q4_0\.gguf"),
    (two_models, r"holds GGUF files; serve one of them: a\.gguf, b-00001-of-00002\.gguf$"),
    (of_type("qwen2"), "Qwen1.5, Qwen2 or Qwen2.5 model.*first-generation.*vLLM"),
    (of_type("qwen2_5_vl"), "Qwen1.5, Qwen2 or Qwen2.5 model"),
    (of_type("qwen3_moe"), "a Qwen3 model"),
    (of_type("qwen4"), "a later Qwen model"),
    (of_type("llama"), "model_type is 'llama'; this server runs first-generation Qwen"),
    (nameless_adapter, r"is an adapter of a model that it does not name, not a whole model"),
    (cache, r"holds models--Qwen--Qwen-7B/snapshots/abc: serve"),
    (snapshot, r"is no checkpoint itself, but holds snapshots/abc: serve .*/snapshots/abc$"),
]


@pytest.mark.parametrize(("write", "words"), FOLDERS)
@pytest.mark.parametrize("command", ["serve", "check-config", "memory"])
def test_it_is_told_what_it_is(
    command: str,
    write: Callable[[Path], None],
    words: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "it"
    folder.mkdir()
    write(folder)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_model_config(folder)
    monkeypatch.setattr("server.serve.configure_logging", lambda *_: None)
    assert main([command, str(folder)]) == 1
    assert capfd.readouterr().err.splitlines()[-1] == f"qwen-server: {caught.value}"


@pytest.mark.parametrize("name", ["config.json", "qwen.tiktoken", "model.safetensors", "pytorch_model.bin"])
def test_what_came_in_the_place_of_a_file(name: str, demo_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cloned"
    shutil.copytree(demo_checkpoint, folder)
    (folder / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match=rf"{name}: is a Git LFS pointer.*run `git lfs pull` in {folder}"):
        read_model_config(folder)
    (folder / name).write_text("\n<!DOCTYPE html><html>" + "x" * 5000)
    with pytest.raises(CheckpointError, match=rf"{name}: is a web page"):
        read_model_config(folder)


def test_a_file_is_told_too(tmp_path: Path) -> None:
    for name, words in (("a.bin", "give the checkpoint's folder, or a GGUF"), ("a.safetensors", "is a file; give the")):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(CheckpointError, match=words):
            hub.resolve_checkpoint(str(tmp_path / name))


def test_other_models_weights_are_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_type("qwen2")(tmp_path)
    asked: list[str] = []

    def download(model: str, patterns: Sequence[str], **_: object) -> Path:
        asked.extend(patterns)
        return tmp_path

    monkeypatch.setattr(hub, "download", download)
    with pytest.raises(CheckpointError, match="Qwen2"):
        hub.resolve_checkpoint("Qwen/Qwen2-7B")
    assert "config.json" in asked
    assert not [pattern for pattern in asked if "safetensors" in pattern or "bin" in pattern]


@pytest.mark.parametrize("model", ["/nope", "nope", "a/b/c", "README.md"])
def test_check_config_knows_what_cannot_be_served(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-config", model]) == 1
    assert capsys.readouterr().err.startswith(f"qwen-server: {model}: ")
