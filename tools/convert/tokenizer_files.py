"""Files for the tokenizers library that give the ids of `qwen.tiktoken`, and a `qwen.tiktoken` from such files.

Pure. What differs by nature: transformers takes the name of a control token in any text for the token, unless it is
told `split_special_tokens=True`; this server never does.
"""

from __future__ import annotations

import base64
import json
import logging
import operator
from pathlib import Path
from typing import Any

from model.contract.errors import CheckpointError
from model.contract.files.byte_pairs import from_letters, letters, merges_of, never_joined
from model.contract.files.json_file import read_json
from model.contract.files.vocabulary import NUM_CONTROL_TOKENS, first_gap, require_whole
from model.contract.tokenizer import ENDOFTEXT, IM_END, IM_START, PATTERN, Tokenizer
from prompts.chatml import JINJA_TEMPLATE

logger = logging.getLogger(__name__)

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"


def tokenizer_json(ranks: dict[bytes, int]) -> dict[str, Any]:
    """Makes `tokenizer.json` of a vocabulary's ranks."""
    tokenizer = Tokenizer(ranks)
    controls = {name: tokenizer.special_id(name) for name in tokenizer.special_names}
    added = [
        {"id": token_id, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for name, token_id in sorted(controls.items(), key=lambda item: item[1])
    ]  # fmt: skip
    vocab = {letters(token): token_id for token, token_id in sorted(ranks.items(), key=lambda item: item[1])}
    if max(ranks.values()) > tokenizer.num_ranks:
        # Ids behind those of the control tokens: where these are not part of it, the library numbers them anew.
        vocab |= controls
    by_bytes = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    merges = merges_of(ranks)
    if lost := never_joined(ranks, merges):
        logger.warning(
            "%d tokens of the vocabulary, such as %r, are known as whole words only: transformers' Qwen2Tokenizer never"
            " makes them, PreTrainedTokenizerFast does",
            len(lost),
            lost[0],
        )
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", **by_bytes}]},
        "post_processor": {"type": "ByteLevel", **by_bytes},
        "decoder": {"type": "ByteLevel", **by_bytes},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": vocab,
            "merges": [[letters(left), letters(right)] for left, right in merges],
        },
    }


def tokenizer_config(max_length: int, *, chats: bool) -> dict[str, Any]:
    """Makes the `tokenizer_config.json` beside it.

    Args:
        max_length: the trained length.
        chats: whether a turn's end ends a reply; else the end of the text does.
    """
    return {
        # Not Qwen2Tokenizer, which would leave out `ignore_merges`.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": IM_END if chats else ENDOFTEXT,
        "pad_token": ENDOFTEXT,
        "unk_token": None,
        "errors": "replace",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "model_max_length": max_length,
        "chat_template": JINJA_TEMPLATE,
    }


def read_tokenizer_files(folder: Path) -> dict[bytes, int]:
    """Reads ranks from the `tokenizer.json` (or vocab.json and merges.txt) of a folder.

    Raises:
        CheckpointError: missing, malformed, or a tokenizer that `qwen.tiktoken` cannot express.
    """
    path = folder / TOKENIZER_FILE
    if path.exists():
        vocab, merges, added = _read_tokenizer_json(path)
    elif (folder / "vocab.json").exists():
        path = folder / "vocab.json"
        vocab, merges, added = read_json(path), _read_merges(folder / "merges.txt"), _added_of_config(folder)
    else:
        raise CheckpointError(f"{folder}: has no {TOKENIZER_FILE} and no vocab.json")
    names = {name: token_id for token_id, name in added.items()}
    try:
        ranks = {from_letters(text): operator.index(rank) for text, rank in vocab.items() if text not in names}
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: its vocabulary is not one of bytes ({error!r})") from error
    require_whole(ranks, path)
    if [tuple(map(letters, pair)) for pair in merges_of(ranks)] != merges:
        raise CheckpointError(f"{path}: its merges are not in the order of its ids; qwen.tiktoken has no other order")
    start = first_gap(ranks)
    for place, name in enumerate((ENDOFTEXT, IM_START, IM_END)):
        if added.get(start + place) != name:
            raise CheckpointError(
                f"{path}: id {start + place} is {added.get(start + place)!r}, where first-generation Qwen has {name!r}"
            )
    for token_id, name in added.items():
        if not start <= token_id < start + NUM_CONTROL_TOKENS:
            raise CheckpointError(
                f"{path}: the added token {name!r} has id {token_id}, and qwen.tiktoken cannot say it: control tokens"
                f" are {start} to {start + NUM_CONTROL_TOKENS - 1}"
            )
    return ranks


def tiktoken_file(ranks: dict[bytes, int]) -> str:
    """Makes the text of `qwen.tiktoken`."""
    in_order = sorted(ranks.items(), key=lambda item: item[1])
    return "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in in_order)


def _read_tokenizer_json(path: Path) -> tuple[dict[str, Any], list[tuple[str, ...]], dict[int, str]]:
    raw = read_json(path)
    if json.dumps(PATTERN) not in json.dumps(raw.get("pre_tokenizer")):
        raise CheckpointError(f"{path}: cuts text by another pattern than first-generation Qwen's")
    model = raw.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise CheckpointError(f"{path}: is no byte-pair tokenizer")
    try:
        merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
        added = {operator.index(token["id"]): str(token["content"]) for token in raw.get("added_tokens") or ()}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: is malformed ({error!r})") from error
    return model["vocab"], merges, added


def _read_merges(path: Path) -> list[tuple[str, ...]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    return [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]


def _added_of_config(folder: Path) -> dict[int, str]:
    path = folder / TOKENIZER_CONFIG
    added = read_json(path).get("added_tokens_decoder") if path.exists() else None
    try:
        return {int(token_id): str(token["content"]) for token_id, token in (added or {}).items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its added_tokens_decoder is malformed ({error!r})") from error
