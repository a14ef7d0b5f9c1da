"""Where checkpoints are found, and the defaults of their generation_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.contract.errors import CheckpointError
from server.__main__ import main
from server.config.sources import load_settings
from server.conversion.defaults import GenerationDefaults
from server.hubs.resolve import describe_checkpoint, resolve_checkpoint, served_names
from tests.support.paths import ROOT
from tools.memory.report import find_checkpoint


def read(folder: Path, data: Any) -> GenerationDefaults:
    (folder / "generation_config.json").write_text(data if isinstance(data, str) else json.dumps(data))
    return GenerationDefaults.from_folder(folder)


def test_no_file_means_the_published_defaults(tmp_path: Path) -> None:
    defaults = GenerationDefaults.from_folder(tmp_path)
    assert (defaults.temperature, defaults.top_p, defaults.top_k) == (1.0, 0.8, 0)
    assert (defaults.chat_format, defaults.eos_token_ids) == ("chatml", ())


def test_the_file_is_read(tmp_path: Path) -> None:
    defaults = read(tmp_path, {"do_sample": False, "top_k": 3, "eos_token_id": [1, 2], "chat_format": "raw"})
    assert (defaults.temperature, defaults.top_k, defaults.eos_token_ids) == (0.0, 3, (1, 2))
    assert defaults.chat_format == "raw"
    assert read(tmp_path, {"eos_token_id": 7, "stop_words_ids": [[7], [8], [1, 2]]}).eos_token_ids == (7, 8)
    assert read(tmp_path, {"top_k": -1, "top_p": None}).top_k == 0
    assert read(tmp_path, {"stop_words_ids": [[7], [1, 2], []]}).stop_sequences == ((1, 2),)
    assert read(tmp_path, {"top_p": 0.0}).top_p == 0
    assert read(tmp_path, {"max_new_tokens": 512}).max_new_tokens == 512
    assert read(tmp_path, {"max_new_tokens": None}).max_new_tokens is None


@pytest.mark.parametrize(
    "data",
    [
        "{",
        "[]",
        {"top_p": "x"},
        {"top_p": -0.1},
        {"eos_token_id": "x"},
        {"eos_token_id": [True]},
        {"stop_words_ids": [1]},
        {"stop_words_ids": [["x"]]},
        {"chat_format": "v9"},
        {"max_new_tokens": 0},
        {"max_new_tokens": "x"},
    ],
)
def test_a_broken_file_stops_the_start_and_is_named(tmp_path: Path, data: Any) -> None:
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        read(tmp_path, data)


def test_a_golden_checkpoint() -> None:
    defaults = GenerationDefaults.from_folder(ROOT / "tests/data/golden/ntk_logn_fp32")
    assert (defaults.top_p, defaults.repetition_penalty, defaults.eos_token_ids) == (0.8, 1.1, (256,))
    assert defaults.max_new_tokens == 512


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_checkpoint(str(tmp_path)) == tmp_path
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, words in (
        (str(file), "is a file"),
        (str(tmp_path / "none"), "no such folder"),
        ("./a/b/c", "no such folder"),
        ("just-a-name", "no such folder"),
        (f"{tmp_path}/x", "no such folder"),
        ("~no-such-user/x", "home directory"),
        (f"{tmp_path}/{'x' * 300}", "File name too long"),
        ("tests/x", "because a folder tests is here"),
    ):
        for find in (resolve_checkpoint, lambda name: describe_checkpoint(name, ""), find_checkpoint):
            with pytest.raises(CheckpointError, match=words) as caught:
                find(name)
            assert "\n" not in str(caught.value)


def test_a_folder_that_may_not_be_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", refuse)
    for find in (resolve_checkpoint, find_checkpoint, lambda name: served_names(name, ())):
        with pytest.raises(CheckpointError, match=r"^/root/Qwen: Permission denied$"):
            find("/root/Qwen")


def test_the_hub_cache_is_used_offline(tmp_path: Path) -> None:
    """In a process of its own: the hub library reads its environment when it is imported."""
    import subprocess
    import sys

    snapshot = tmp_path / "hub" / "models--me--tiny" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"model_type": "qwen"}')
    (snapshot / "model.bin").write_text("")
    refs = tmp_path / "hub" / "models--me--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    code = "from server.hubs.resolve import resolve_checkpoint as r; print(r('me/tiny')); print(r('me/other'))"
    environ = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "", "HF_HUB_CACHE": str(tmp_path / "hub")}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert result.stdout.strip() == str(snapshot)
    assert "CheckpointError: me/other: not a folder here, not in the local hub cache, and offline mode is on" in (
        result.stderr
    )


def test_where_a_checkpoint_lies_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret-project" / "My-Model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "secret-project")
    for spelling in (
        str(tmp_path / "secret-project" / "My-Model"),
        "My-Model/",
        "./My-Model",
        "../secret-project/My-Model",
    ):
        assert served_names(spelling, ()) == ("My-Model", "Qwen")


def test_the_demo_is_what_is_served_without_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every working folder: it comes with the package, and a local folder of that name is ignored."""
    (tmp_path / "qwen-demo").mkdir()
    monkeypatch.chdir(tmp_path)
    settings = load_settings({}, {})
    assert settings.served_names == ("qwen-demo", "Qwen")
    folder = resolve_checkpoint(settings.model)
    assert folder == ROOT / "demo" / "checkpoint"
    assert resolve_checkpoint("./qwen-demo") == tmp_path / "qwen-demo"
    named = load_settings({"model": str(folder)}, {}).served_names
    assert named == ("qwen-demo", "Qwen")
    assert main(["check-config"]) == 0
