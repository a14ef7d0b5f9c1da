"""model/contract/files/weight_files.py: which of several files are read."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from model.contract.errors import CheckpointError
from model.contract.files.weight_files import find_weight_files

SHARDS = {"safetensors": "model-0000{}-of-00002.safetensors", "bin": "pytorch_model-0000{}-of-00002.bin"}
# What transformers' from_pretrained looks for, in its order.
ORDER = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def put(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def put_set(folder: Path, name: str) -> list[str]:
    """Puts one set of weights there; returns the files that hold it."""
    files = [name]
    if name.endswith(".index.json"):
        files = [SHARDS["safetensors" if "safetensors" in name else "bin"].format(number) for number in (1, 2)]
        (folder / name).write_text(json.dumps({"weight_map": dict(zip("ab", files, strict=True))}))
    put(folder, *files)
    return files


def names(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in find_weight_files(folder)]


@pytest.mark.parametrize("first", range(len(ORDER)))
def test_the_order_is_transformers(first: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sets = {name: put_set(tmp_path, name) for name in ORDER[first:]}
    with caplog.at_level(logging.WARNING):
        assert names(tmp_path) == sets[ORDER[first]]
    told = f"{ORDER[first]} is read, {', '.join(ORDER[first + 1 :])} not"
    assert (told in caplog.text) == (len(sets) > 1)
    assert bool(caplog.records) == (len(sets) > 1)


def test_a_stale_index_beside_a_single_file(tmp_path: Path) -> None:
    put(tmp_path, "model.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    assert names(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize(
    "files",
    [
        ["part-1.safetensors", "part-2.safetensors"],
        ["gptq_model-4bit-128g.safetensors"],
        ["gptq_model-4bit-128g.bin"],
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"],
    ],
)
def test_files_without_an_index(files: list[str], tmp_path: Path) -> None:
    put(tmp_path, *files, "training_args.bin", "optimizer.bin")
    assert names(tmp_path) == files


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    put(tmp_path, "pytorch_model-00001-of-00003.bin", "pytorch_model-00003-of-00003.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model-00002-of-00003\.bin: no such file"):
        find_weight_files(tmp_path)


def test_shards_of_two_sets_are_not_mixed(tmp_path: Path) -> None:
    put(tmp_path, *(SHARDS["safetensors"].format(n) for n in (1, 2)), "model-00001-of-00001.safetensors")
    with pytest.raises(CheckpointError, match="several sets and no index"):
        find_weight_files(tmp_path)


@pytest.mark.parametrize("weights", ORDER)
def test_a_training_run_s_subfolder_is_pointed_to(weights: str, tmp_path: Path) -> None:
    put(tmp_path, "checkpoint-90/training_args.bin", f"checkpoint-500/{weights}", f"checkpoint-80/{weights}")
    with pytest.raises(CheckpointError, match="no weights found") as caught:
        find_weight_files(tmp_path)
    assert f"serve {tmp_path / 'checkpoint-500'}" in str(caught.value)
