"""Recognises what people name in place of a checkpoint: each kind has a sentence of its own.

Pure: names and the first bytes of files are looked at, never a tensor.
"""

from __future__ import annotations

from pathlib import Path

from model.contract.errors import CheckpointError
from model.contract.files.json_file import MAX_CONFIG_BYTES, read_json
from model.contract.gguf.file import is_gguf, is_later_shard

MODEL_TYPE = "qwen"
# Of a config.json that `qwen-server convert` wrote: what transformers' Qwen2 layout has no words for.
CONVERTED_KEY = "first_generation_qwen"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_WEB_PAGE = (b"<!doctype html", b"<html")
_NUM_FIRST_BYTES = 64
_FETCHED = ("*.safetensors", "*.bin", "*.tiktoken", "*.json")
ADAPTER_CONFIG = "adapter_config.json"
# model_type of later generations, and what those call themselves.
_GENERATIONS = {"qwen2": "Qwen1.5, Qwen2 or Qwen2.5", "qwen3": "Qwen3"}


def require_checkpoint(folder: Path) -> None:
    """Refuses a folder that is plainly something else than a checkpoint; anything doubtful passes.

    Raises:
        CheckpointError: it is empty, an adapter, several GGUF files, a hub's cache, of another architecture, or has
            something else in a file's place.
    """
    try:
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    except OSError:
        return  # whoever reads the files says what is wrong
    if not names:
        raise CheckpointError(f"{folder}: is empty; a checkpoint has config.json, qwen.tiktoken and its weights")
    _refuse_stand_ins(folder)
    if "config.json" in names:
        raw = read_json(folder / "config.json", MAX_CONFIG_BYTES)
        model_type = raw.get("model_type")
        if CONVERTED_KEY in raw and model_type == "qwen2":
            raise CheckpointError(
                f"{folder}: is a first-generation checkpoint in transformers' Qwen2 layout;"
                f" `qwen-server convert {folder} OUT --to qwen` writes the one that is served"
            )
        if model_type != MODEL_TYPE:
            raise CheckpointError(f"{folder / 'config.json'}: {describe_model_type(model_type)}")
        return
    if ADAPTER_CONFIG in names:
        raise CheckpointError(f"{folder}: {_describe_adapter(folder / ADAPTER_CONFIG)}")
    gguf = _gguf_files(folder)
    if gguf:
        names_told = ", ".join(path.name for path in gguf[:5]) + (" ..." if len(gguf) > 5 else "")
        raise CheckpointError(f"{folder}: holds GGUF files; serve one of them: {names_told}")
    depths = ("*", "snapshots/*", "*/snapshots/*")  # the last two of a hub's cache
    below = sorted(path.parent for depth in depths for path in folder.glob(f"{depth}/config.json"))
    if below:
        raise CheckpointError(f"{folder}: is no checkpoint itself, but holds {below[-1].relative_to(folder)}: serve"
                              f" {below[-1]}")  # fmt: skip


def training_steps(folder: Path) -> list[Path]:
    """Lists the `checkpoint-N` folders that a trainer left in a folder, newest first."""
    numbers = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")}
    return sorted((p for p, n in numbers.items() if n.isdecimal()), key=lambda p: int(numbers[p]), reverse=True)


def gguf_in(folder: Path) -> Path:
    """Returns the one model in GGUF that a folder without a checkpoint holds, else the folder itself."""
    if (folder / "config.json").exists():
        return folder
    files = _gguf_files(folder)
    return files[0] if len(files) == 1 else folder


def _gguf_files(folder: Path) -> list[Path]:
    """Lists the GGUF models of a folder; of a model's several files the first."""
    try:
        files = sorted(path for path in folder.iterdir() if is_gguf(path) and path.is_file())
    except OSError:
        return []
    return [path for path in files if not is_later_shard(path)]


def describe_file(path: Path) -> str:
    """Says that a file was named in place of a folder."""
    return f"{path}: is a file; give the checkpoint's folder, or a GGUF file"


def describe_model_type(model_type: object) -> str:
    """Says which model a config's model_type stands for, and that it is not served."""
    ours = f"this server runs first-generation Qwen checkpoints only (model_type {MODEL_TYPE!r})"
    if isinstance(model_type, str) and model_type.startswith("qwen"):
        known = next((name for start, name in _GENERATIONS.items() if model_type.startswith(start)), "later Qwen")
        return f"model_type is {model_type!r}, a {known} model; {ours}; vLLM, SGLang and llama.cpp run the later ones"
    return f"model_type is {model_type!r}; {ours}"


def _refuse_stand_ins(folder: Path) -> None:
    """Refuses pointers, web pages and devices in place of files."""
    for path in sorted(path for pattern in _FETCHED for path in folder.glob(pattern)):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise CheckpointError(f"{path}: is no regular file, but something that may never answer when read")
        try:
            with path.open("rb") as file:
                start = file.read(_NUM_FIRST_BYTES)
        except OSError:
            continue
        if start.startswith(_LFS_POINTER):
            raise CheckpointError(f"{path}: is a Git LFS pointer, not the file itself; run `git lfs pull` in {folder}")
        if start.lstrip().lower().startswith(_WEB_PAGE):
            raise CheckpointError(
                f"{path}: is a web page, not the file itself; download it again, as with `hf download`"
            )


def _describe_adapter(path: Path) -> str:
    config = read_json(path, MAX_CONFIG_BYTES)
    base = config.get("base_model_name_or_path") or "a model that it does not name"
    kind = f" ({config['peft_type']})" if config.get("peft_type") else ""
    return (
        f"this is an adapter of {base}{kind}, not a whole model; merge it first (qwen-server merge) and"
        f" serve what that writes, or serve its base with --lora NAME={path.parent}"
    )
