"""Finds the files that hold a folder's weights: the ones transformers would read, in its order.

Pure: names, indices and headers are looked at, never a tensor.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from pathlib import Path, PurePosixPath

from model.contract.errors import CheckpointError
from model.contract.files.checkpoint_folder import training_steps
from model.contract.files.json_file import read_json
from model.contract.files.safetensors_header import read_header
from model.contract.gguf.file import is_gguf

logger = logging.getLogger(__name__)

EMBEDDING = "transformer.wte.weight"

_INDEX_SUFFIX = ".index.json"
# In transformers' order: what save_pretrained wrote last may stand beside what it wrote before.
_SETS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# Where there is none of them: files under auto-gptq's names, shards that lost their index, or other names.
_LOOSE = ("gptq_model*.safetensors", "*.safetensors", "pytorch_model-*.bin", "gptq_model*.bin")
_NO_WEIGHTS = re.compile(r"(adapter_model|training_args|optimizer|scheduler)\b")
_MAX_NAME_CHARS = 4096
_SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)$")


def find_weight_files(folder: Path) -> list[Path]:
    """Lists the files that hold a checkpoint's tensors.

    Raises:
        CheckpointError: there are none, or a shard is missing.
    """
    if is_gguf(folder):
        raise CheckpointError(f"{folder}: is a GGUF file; this needs a folder with safetensors or .bin files")
    found = [folder / name for name in _SETS if (folder / name).is_file()]
    if len(found) > 1:
        others = ", ".join(path.name for path in found[1:])
        logger.warning("%s holds several sets of weights: %s is read, %s not", folder, found[0].name, others)
    if found:
        return _shards_of_index(found[0]) if found[0].name.endswith(_INDEX_SUFFIX) else [found[0]]
    for pattern in _LOOSE:
        loose = [path for path in sorted(folder.glob(pattern)) if not _NO_WEIGHTS.match(path.name)]
        if loose:
            return _whole_set(loose)
    if (states := _deepspeed_states(folder)) is not None:
        return [states]
    raise CheckpointError(
        f"{folder}: no weights found; expected {', '.join(_SETS[:-1])} or {_SETS[-1]}{weights_below(folder)}"
    )


def _deepspeed_states(folder: Path) -> Path | None:
    """Returns the file of model states that DeepSpeed saved, in the folder or in the step that `latest` names.

    Raises:
        CheckpointError: they are partitions, which only DeepSpeed's own script puts together.
    """
    steps = [folder, *sorted(folder.glob("global_step*"), key=lambda path: (len(path.name), path.name), reverse=True)]
    with contextlib.suppress(OSError, ValueError):
        with (folder / "latest").open(encoding="utf-8") as file:
            named = folder / Path(file.read(_MAX_NAME_CHARS).strip()).name
        if named.is_dir():
            steps = [folder, named, *steps[1:]]
    for step in steps:
        if any(step.glob("zero_pp_rank_*_model_states.pt")):
            raise CheckpointError(
                f"{step}: holds partitions of DeepSpeed's ZeRO stage 3; put them together first: python zero_to_fp32.py"
                f" . pytorch_model.bin, in {folder}"
            )
        states = sorted(step.glob("mp_rank_*_model_states.pt"))
        if len(states) > 1:
            raise CheckpointError(
                f"{step}: holds a model split among {len(states)} ranks ({states[0].name} ...); save it whole first"
            )
        if states:
            return states[0]
    return None


def rows_of_embedding(folder: Path) -> int | None:
    """Returns how many rows the embedding in a folder's safetensors files has; None where they do not tell."""
    with contextlib.suppress(CheckpointError):  # whoever loads the files says what is wrong with them
        for path in find_weight_files(folder):
            info = read_header(path).get(EMBEDDING) if path.suffix == ".safetensors" else None
            if info is not None and info.shape:
                return int(info.shape[0])
    return None


def weights_below(folder: Path) -> str:
    """Names the newest `checkpoint-N` subfolder that has weights, for a message; empty if there is none."""
    for path in training_steps(folder):
        if any((path / name).is_file() for name in _SETS):
            return f"; {path.name} has weights: serve {path}, with what it lacks copied from here"
    return ""


def _whole_set(paths: list[Path]) -> list[Path]:
    """Refuses a set of shards of which some are missing; files of other names are taken as they are.

    Raises:
        CheckpointError: naming the first missing one, or two sets that lie side by side.
    """
    shards = [match for path in paths if (match := _SHARD.match(path.stem))]
    if len(shards) != len(paths):
        return paths
    sets = {(match[1], int(match[3])) for match in shards}
    if len(sets) > 1:
        raise CheckpointError(
            f"{paths[0].parent}: holds shards of several sets and no index ({paths[0].name}, {paths[-1].name});"
            " leave one set there"
        )
    ((stem, count),) = sets
    numbers = {int(match[2]) for match in shards}
    for number in range(1, count + 1):
        if number not in numbers:
            name = f"{stem}-{number:0{len(shards[0][2])}}-of-{shards[0][3]}{paths[0].suffix}"
            raise CheckpointError(f"{paths[0].parent / name}: no such file; is the download complete?")
    return paths


def _shards_of_index(index_path: Path) -> list[Path]:
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index_path}: 'weight_map' is missing or malformed")
    paths = []
    for name in sorted(set(weight_map.values())):
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts:
            raise CheckpointError(f"{index_path}: shard {name!r} lies outside the checkpoint folder")
        path = index_path.parent / relative
        if not os.path.isfile(path):  # to Path a name longer than any file's is an error
            raise CheckpointError(f"{path}: no such file, but {index_path.name} names it; is the download complete?")
        paths.append(path)
    if not paths:
        raise CheckpointError(f"{index_path}: names no shards")
    return paths
