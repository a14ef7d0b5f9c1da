"""Where a checkpoint is: a local folder, or an id on a hub, from which it is fetched into a cache.

Only data is fetched: configuration, vocabulary and weights, never code.
"""

from __future__ import annotations

import re
from pathlib import Path

from model.contract.errors import AdapterError, CheckpointError, ConfigError
from model.contract.files.checkpoint_folder import ADAPTER_CONFIG, describe_file, gguf_in, require_checkpoint
from model.contract.gguf.file import is_gguf
from server.hubs.demo import demo_folder, demo_name
from server.hubs.download import Hub, download

_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "quantize_config.json",
    "quant_config.json",
    "adapter_config.json",  # an adapter is not a checkpoint; it is refused by name
    "*.tiktoken",
)
_SAFETENSORS = ("*.safetensors", "*.safetensors.index.json")
_PICKLES = ("*.bin", "*.bin.index.json")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
# A GGUF file in a repository, which mostly has one model in many sizes.
_HUB_FILE = re.compile(rf"({_HUB_ID.pattern})/((?:\w[\w.-]*/)*\w[\w.-]*\.gguf)", re.IGNORECASE)
_LATER_SHARDS = re.compile(r"-\d{5}(-of-\d{5}\.gguf)$", re.IGNORECASE)


def resolve_checkpoint(model: str, hub: Hub = "huggingface", revision: str | None = None) -> Path:
    """Returns the folder of a checkpoint, fetching it from a hub if need be.

    Args:
        model: a folder, a GGUF file, a hub id such as `Qwen/Qwen-1_8B-Chat`, or a GGUF file of one
            (`owner/name/model-q4_0.gguf`). With HF_HUB_OFFLINE=1 nothing is fetched that is not in the cache.
        revision: branch, tag or commit of a hub id.

    Raises:
        CheckpointError: there is neither such a folder nor such an id, or it cannot be fetched.
        ConfigError: a folder with a revision, or a hub whose library is missing.
    """
    folder = folder_here(model, revision)
    if folder is not None:
        return folder
    if (file := _HUB_FILE.fullmatch(model)) is not None:
        return _gguf_of_hub(file[1], file[2], hub, revision)
    # Small files first: weights of a model that cannot be served would be gigabytes in vain.
    require_checkpoint(download(model, _SMALL_FILES, hub=hub, revision=revision))
    folder = download(model, (*_SMALL_FILES, *_SAFETENSORS), hub=hub, revision=revision)
    if not any(folder.glob("*.safetensors")):
        folder = download(model, (*_SMALL_FILES, *_PICKLES), hub=hub, revision=revision)
    return folder


def resolve_adapter(source: str, hub: Hub = "huggingface") -> Path:
    """Returns the folder of a LoRA adapter, fetching it from a hub if need be.

    Args:
        source: a folder, or a hub id.

    Raises:
        AdapterError: there is neither, or it cannot be fetched.
        ConfigError: the hub's library is missing.
    """
    try:
        folder = local_folder(source)
        if folder is None:
            _require_hub_id(source)
            folder = download(source, (ADAPTER_CONFIG, "adapter_model.safetensors"), hub=hub, revision=None)
            if not (folder / "adapter_model.safetensors").exists():
                folder = download(source, (ADAPTER_CONFIG, "adapter_model.bin"), hub=hub, revision=None)
    except CheckpointError as error:
        raise AdapterError(str(error)) from error
    return folder


def describe_checkpoint(model: str, otherwise: str, hub: Hub = "huggingface", revision: str | None = None) -> Path:
    """Like `resolve_checkpoint`, but does not fetch the weights.

    Args:
        otherwise: end of the error message for a name that is neither a folder nor a hub id.
    """
    folder = folder_here(model, revision, otherwise)
    if folder is None and (file := _HUB_FILE.fullmatch(model)) is not None:
        return _gguf_of_hub(file[1], file[2], hub, revision)
    return folder or download(model, (*_SMALL_FILES, "*.index.json"), hub=hub, revision=revision)


def _gguf_of_hub(model: str, name: str, hub: Hub, revision: str | None) -> Path:
    """Fetches one file of a repository; where a model is in several files, all of them."""
    folder = download(model, (_LATER_SHARDS.sub(r"-*\1", name),), hub=hub, revision=revision)
    path = folder / name
    if not path.is_file():
        raise CheckpointError(f"{model}: has no file {name}")
    return path


def folder_here(model: str, revision: str | None, otherwise: str = "") -> Path | None:
    """Returns the local folder of a name, or None where it is a hub id.

    Args:
        otherwise: as for `describe_checkpoint`.

    Raises:
        CheckpointError: it is neither.
        ConfigError: it is a folder, and a revision is given.
    """
    folder = local_folder(model)
    if folder is None:
        _require_hub_id(model, otherwise)
    elif revision is not None:
        raise ConfigError(f"--revision {revision}: is of a hub id, but {model} is a folder here")
    return folder


def local_folder(model: str) -> Path | None:
    """Returns the resolved path of a folder or a GGUF file, or None where there is none of that name.

    The names of the demo checkpoints stand for those in every working folder.

    Raises:
        CheckpointError: it is another file, or cannot be read.
    """
    if (demo := demo_folder(model)) is not None:
        return demo
    try:
        path = Path(model).expanduser()
        if path.is_dir():
            return gguf_in(path.resolve())
        if path.is_file() and is_gguf(path):
            return path.resolve()
        if path.exists():
            raise CheckpointError(describe_file(path))
    except OSError as error:
        raise CheckpointError(f"{model}: {error.strerror or error}") from error
    except (RuntimeError, ValueError) as error:  # no such user, or a byte that no path has
        raise CheckpointError(f"{model}: {error}") from error
    return None


def _require_hub_id(model: str, otherwise: str = "") -> None:
    if _HUB_ID.fullmatch(model) is None and _HUB_FILE.fullmatch(model) is None:
        raise CheckpointError(f"{model}: no such folder, and not a hub id of the form owner/name {otherwise}".rstrip())
    owner = model.split("/")[0]
    if Path(owner).is_dir():
        raise CheckpointError(
            f"{model}: no such folder (taken for a path, because a folder {owner} is here; start elsewhere to fetch it)"
        )


def served_names(model: str, given: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the names requests may use, the first being the one replies carry by default.

    Args:
        model: argument of the command line.
        given: values of `--served-model-name`, which replace the automatic names.
    """
    if given:
        return tuple(dict.fromkeys(given))
    name = model.rstrip("/") or model
    folder = local_folder(name)
    if folder is None:
        own = [name, name.rsplit("/", 1)[-1]]
    else:
        # Without the path: lists, errors and metrics show names to everybody.
        own = [demo_name(folder) or (folder.stem if is_gguf(folder) else folder.name)]
    return tuple(dict.fromkeys(n for n in (*own, "Qwen") if n))
