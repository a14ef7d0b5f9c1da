"""The files of a vocabulary: `qwen.tiktoken`, and the ranks that were added to it.

A rank is a token's id and its place in the order of merges. The published vocabulary has 151,643; behind them come 208
control tokens, and behind those what a fine-tune added, from a file of its own or written into the same one.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
from pathlib import Path

from model.contract.errors import CheckpointError
from model.contract.files.json_file import MAX_CONFIG_BYTES, read_json

logger = logging.getLogger(__name__)

VOCABULARY_FILE = "qwen.tiktoken"
NUM_CONTROL_TOKENS = 208
CONTROL_NAMES = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # the first of them
# Where the control tokens of the published vocabulary stand, whatever is added to it.
_NUM_PUBLISHED_RANKS = 151643
# No vocabulary comes near; a damaged rank must not become a table of a trillion rows.
_MAX_RANK = 1 << 24
_MAX_BYTES = 64 << 20
_CONFIG_FILE = "tokenizer_config.json"
# The usual name of a file of added ranks, and the key of tokenizer_config.json that names it.
_EXTRA_FILE = "qwen_extra.tiktoken"
_EXTRA_KEY = "extra_vocab_file"


def read_vocabulary(folder: Path) -> dict[bytes, int]:
    """Reads the ranks of a checkpoint folder: `qwen.tiktoken`, and what tokenizer_config.json adds to it.

    Raises:
        CheckpointError: a file is missing or malformed.
    """
    ranks = read_ranks(folder / VOCABULARY_FILE)
    _add_extra_ranks(ranks, folder)
    return ranks


def read_ranks(path: Path) -> dict[bytes, int]:
    """Reads the `base64 rank` file of a whole vocabulary, with or without ranks that were added to it.

    Raises:
        CheckpointError: missing, malformed, or its ranks are not 0..n-1 and then from n + 208 on.
    """
    ranks = _read_rank_file(path)
    require_whole(ranks, path)
    return ranks


def require_whole(ranks: dict[bytes, int], path: Path) -> None:
    """Refuses ranks that are no whole vocabulary.

    Args:
        path: the file they were read from, for messages.

    Raises:
        CheckpointError: ids or single bytes are missing, or an id is taken twice or beyond any vocabulary.
    """
    if max(ranks.values(), default=0) > _MAX_RANK:
        raise CheckpointError(f"{path}: has the rank {max(ranks.values())}, which no vocabulary reaches")
    start = first_gap(ranks)
    added = sorted(rank for rank in ranks.values() if rank >= start)
    end_of_controls = start + NUM_CONTROL_TOKENS
    if _NUM_PUBLISHED_RANKS < start <= _NUM_PUBLISHED_RANKS + NUM_CONTROL_TOKENS:
        raise CheckpointError(
            f"{path}: ids {_NUM_PUBLISHED_RANKS} to {start - 1} belong to the control tokens; number added tokens"
            f" from {_NUM_PUBLISHED_RANKS + NUM_CONTROL_TOKENS} on"
        )
    if added and start == _NUM_PUBLISHED_RANKS:
        is_whole = added[0] >= end_of_controls
    else:  # of an unknown vocabulary any other gap may as well be damage
        is_whole = added == list(range(end_of_controls, end_of_controls + len(added)))
    if not ranks or min(ranks.values()) < 0 or not is_whole:
        raise CheckpointError(
            f"{path}: ranks must be 0 to n-1, each once (and added ones from n+{NUM_CONTROL_TOKENS} on);"
            " the file is truncated or damaged"
        )
    missing = [b for b in range(256) if bytes([b]) not in ranks]
    if missing:
        raise CheckpointError(f"{path}: the single bytes {missing[:8]} have no rank; the file is truncated or damaged")


def _add_extra_ranks(ranks: dict[bytes, int], folder: Path) -> None:
    """Adds the ranks of the file that tokenizer_config.json names as the published tokenizer does.

    It skips tokens that exist and ids that are taken, so a model was trained without those; here the log says so.

    Raises:
        CheckpointError: the file is named and missing, or malformed.
    """
    config_path = folder / _CONFIG_FILE
    name = read_json(config_path, MAX_CONFIG_BYTES).get(_EXTRA_KEY) if config_path.exists() else None
    start = first_gap(ranks)
    is_expanded = max(ranks.values()) > start
    if not name:
        if (folder / _EXTRA_FILE).exists() and not is_expanded:
            logger.warning(
                '%s is not read: nothing names it; if the model was trained with it, put "%s": "%s" into %s',
                folder / _EXTRA_FILE,
                _EXTRA_KEY,
                _EXTRA_FILE,
                config_path,
            )
        return
    # The path of the machine that trained the model says nothing here; the file lies beside the others.
    path = folder / Path(str(name)).name
    if not os.path.exists(path):
        if is_expanded:  # the published tokenizer saves the whole vocabulary as one file
            return
        raise CheckpointError(f"{path}: no such file, but {config_path.name} names it as {_EXTRA_KEY}")
    taken = {*ranks.values(), *range(start, start + NUM_CONTROL_TOKENS)}
    skipped = []
    for token, rank in _read_rank_file(path).items():
        if ranks.get(token) == rank:
            continue
        if token in ranks or rank in taken or rank < 0:
            skipped.append(rank)
            continue
        ranks[token] = rank
        taken.add(rank)
    if skipped:
        logger.warning(
            "%s: %d of its tokens exist already or have an id that is taken (the first is %d); they are left out,"
            " as the published tokenizer leaves them out",
            path,
            len(skipped),
            skipped[0],
        )


def _read_rank_file(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CheckpointError(f"{path}: is larger than {_MAX_BYTES:,} bytes; no vocabulary is")
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    token, rank = _read_line(line, f"{path}: line {number}")
                    ranks[token] = rank
    except OSError as e:
        raise CheckpointError(
            f"{path}: cannot read the vocabulary ({e.strerror}); a Qwen checkpoint needs {VOCABULARY_FILE}"
        ) from e
    if len(set(ranks.values())) < len(ranks):
        raise CheckpointError(f"{path}: ranks must be 0 to n-1, each once; the file is truncated or damaged")
    return ranks


def _read_line(line: bytes, place: str) -> tuple[bytes, int]:
    try:
        text, number = line.split()
        token, rank = base64.b64decode(text, validate=True), int(number)
    except (ValueError, binascii.Error) as e:
        raise CheckpointError(f"{place} is not 'base64 rank': {line[:80].rstrip()!r}") from e
    if not token:
        raise CheckpointError(f"{place} has an empty token")
    if rank > _MAX_RANK:
        raise CheckpointError(f"{place} has the rank {rank}, which no vocabulary reaches")
    return token, rank


def first_gap(ranks: dict[bytes, int]) -> int:
    """Returns the smallest id from 0 on that has no rank."""
    ids = set(ranks.values())
    return next(i for i in range(len(ids) + 1) if i not in ids)
