"""Where a checkpoint is: a local folder, or an id on the Hugging Face hub that is fetched into its cache.

Only data is fetched: configuration, vocabulary and weights, never code.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from model.errors import CheckpointError

_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "quantize_config.json",
    "*.tiktoken",
)
_SAFETENSORS = ("*.safetensors", "*.safetensors.index.json")
_PICKLES = ("*.bin", "*.bin.index.json")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def resolve_checkpoint(model: str) -> Path:
    """Returns the folder of a checkpoint, fetching it from the hub if need be.

    Args:
        model: a folder, or a hub id such as `Qwen/Qwen-1_8B-Chat`. HF_HUB_OFFLINE=1 keeps to what was fetched before.

    Raises:
        CheckpointError: there is neither such a folder nor such an id, or it cannot be fetched.
    """
    folder = local_folder(model)
    if folder is not None:
        return folder
    _require_hub_id(model, "")
    return _fetch(model)


def describe_checkpoint(model: str, otherwise: str) -> Path:
    """Returns a folder with a checkpoint's configuration; of a hub id without its weights, unless they are there.

    Args:
        model: a folder or a hub id.
        otherwise: what else it could have been, for the error message.

    Raises:
        CheckpointError: there is neither such a folder nor such an id, or it cannot be fetched.
    """
    folder = local_folder(model)
    if folder is not None:
        return folder
    _require_hub_id(model, otherwise)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=[*_SMALL_FILES, "*.index.json"]))
    except (OSError, HFValidationError, LocalEntryNotFoundError) as error:
        raise CheckpointError(f"{model}: {_why(error)}") from error
    except Exception as error:  # a network library's own kinds
        raise CheckpointError(f"{model}: cannot fetch it from the hub ({_first_line(error)})") from error


def local_folder(model: str) -> Path | None:
    """Returns the folder a name means, with all links followed; None if there is nothing of that name.

    Raises:
        CheckpointError: it is a file, or cannot be looked at.
    """
    try:
        folder = Path(model).expanduser()
        if folder.is_dir():
            return folder.resolve()
        if folder.exists():
            raise CheckpointError(f"{model}: is a file; give the checkpoint's folder")
    except OSError as error:
        raise CheckpointError(f"{model}: {error.strerror or error}") from error
    except (RuntimeError, ValueError) as error:  # no such user, or a byte that no path has
        raise CheckpointError(f"{model}: {error}") from error
    return None


def _require_hub_id(model: str, otherwise: str) -> None:
    if _HUB_ID.fullmatch(model) is None:
        raise CheckpointError(f"{model}: no such folder, and not a hub id of the form owner/name {otherwise}".rstrip())
    owner = model.split("/")[0]
    if Path(owner).is_dir():
        raise CheckpointError(
            f"{model}: no such folder (taken for a path, because a folder {owner} is here; start elsewhere to fetch it)"
        )


def served_names(model: str, given: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the names requests may use, the first being the one replies carry by default.

    Args:
        model: as given on the command line.
        given: `--served-model-name`, which replaces the automatic names.
    """
    if given:
        return tuple(dict.fromkeys(given))
    name = model.rstrip("/") or model
    folder = local_folder(name)
    last = name.rsplit("/", 1)[-1] if folder is None else folder.name
    return tuple(dict.fromkeys(n for n in (name, last, "Qwen") if n))


def _fetch(repo_id: str) -> Path:
    # Imported here: it takes a third of a second, and a local folder does not need it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo_id, allow_patterns=[*_SMALL_FILES, *_SAFETENSORS]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(repo_id, allow_patterns=[*_SMALL_FILES, *_PICKLES]))
    except (OSError, HFValidationError, LocalEntryNotFoundError) as error:
        raise CheckpointError(f"{repo_id}: {_why(error)}") from error
    except Exception as error:  # a network library's own kinds
        raise CheckpointError(f"{repo_id}: cannot fetch it from the hub ({_first_line(error)})") from error
    return folder


def _why(error: Exception) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    match error:
        case GatedRepoError():
            return "access to this checkpoint must be granted on the hub first; then set HF_TOKEN"
        case RepositoryNotFoundError():
            return "neither a folder here nor a checkpoint on the hub (for a private one set HF_TOKEN)"
        case OfflineModeIsEnabled() | LocalEntryNotFoundError():
            reason = "offline mode is on" if os.environ.get("HF_HUB_OFFLINE") else "the hub cannot be reached"
            return f"not a folder here, not in the local hub cache, and {reason}"
        case HFValidationError():
            return "not a folder here, and not a valid hub id"
    return f"cannot fetch it from the hub ({_first_line(error)})"


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
