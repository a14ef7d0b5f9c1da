"""Fetches files of a checkpoint from Hugging Face or ModelScope, each by its own library, into that hub's cache.

The libraries are imported when they are needed: they take a third of a second, and a local folder needs neither.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from model.contract.errors import CheckpointError, ConfigError

Hub = Literal["huggingface", "modelscope"]


def add_hub_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--hub` and `--revision` to a command that takes a checkpoint; `serve` has them among its settings."""
    parser.add_argument(
        "--hub", choices=get_args(Hub), default="huggingface", help="where a hub id is looked up (default: %(default)s)"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub id (default: its main branch)")


def download(model: str, patterns: Sequence[str], *, hub: Hub, revision: str | None) -> Path:
    """Returns the folder in the hub's cache that holds the files.

    Args:
        model: owner/name.
        patterns: names or glob patterns of files; a pattern without a file is no error.
        revision: branch, tag or commit; None is the hub's main branch.

    Raises:
        CheckpointError: it cannot be fetched; one sentence.
        ConfigError: the hub's library is not installed.
    """
    fetch = _from_modelscope if hub == "modelscope" else _from_huggingface
    return fetch(model, list(patterns), revision)


def _from_huggingface(model: str, patterns: list[str], revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except (OSError, HFValidationError, LocalEntryNotFoundError) as error:
        raise CheckpointError(f"{model}: {_why(error, revision)}") from error
    except Exception as error:  # a network library's own kinds
        raise CheckpointError(f"{model}: cannot fetch it from the hub ({_first_line(error)})") from error


def _why(error: Exception, revision: str | None) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    match error:
        case GatedRepoError():
            return "access to this checkpoint must be granted on the hub first; then set HF_TOKEN"
        case RepositoryNotFoundError():
            return (
                "neither a folder here nor a checkpoint on the hub (for a private one set HF_TOKEN;"
                " for one on ModelScope give --hub modelscope)"
            )
        case RevisionNotFoundError():
            return f"the hub has no revision {revision!r} of it"
        case OfflineModeIsEnabled() | LocalEntryNotFoundError():
            reason = "offline mode is on" if os.environ.get("HF_HUB_OFFLINE") else "the hub cannot be reached"
            which = "" if revision is None else f" (revision {revision})"
            return f"not a folder here, not in the local hub cache{which}, and {reason}"
        case HFValidationError():
            return "not a folder here, and not a valid hub id"
    return f"cannot fetch it from the hub ({_first_line(error)})"


def _from_modelscope(model: str, patterns: list[str], revision: str | None) -> Path:
    try:
        # The hub's client alone: the package `modelscope` would bring torch into this process.
        from modelscope_hub import HubApi
        from modelscope_hub.errors import CacheNotFound, NotExistError
    except ImportError as error:
        raise ConfigError(
            "--hub modelscope needs the extra modelscope: pip install 'qwen-server[modelscope]'"
        ) from error
    is_offline = bool(os.environ.get("HF_HUB_OFFLINE") or os.environ.get("MODELSCOPE_OFFLINE"))
    try:
        folder = HubApi().download_repo(
            model, "model", revision=revision, allow_patterns=patterns, local_files_only=is_offline
        )
    except NotExistError as error:
        which = "" if revision is None else f", or not with revision {revision!r}"
        raise CheckpointError(f"{model}: neither a folder here nor a checkpoint on ModelScope{which}") from error
    except CacheNotFound as error:
        raise CheckpointError(
            f"{model}: not a folder here, not in ModelScope's local cache, and offline mode is on"
        ) from error
    except Exception as error:  # a network library's own kinds
        raise CheckpointError(f"{model}: cannot fetch it from ModelScope ({_first_line(error)})") from error
    return Path(folder)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
