"""The vocabulary of a GGUF file, which stands in place of qwen.tiktoken."""

from __future__ import annotations

from pathlib import Path

from model.contract.errors import CheckpointError
from model.contract.files.byte_pairs import from_letters
from model.contract.files.vocabulary import CONTROL_NAMES, NUM_CONTROL_TOKENS, require_whole
from model.contract.gguf.file import read_gguf

TOKENS, TOKEN_TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
NORMAL, CONTROL, UNUSED = 1, 3, 5  # types of tokens


def gguf_ranks(path: Path) -> dict[bytes, int]:
    """Reads the vocabulary: each token's bytes and its id, control tokens and padding left out.

    Raises:
        CheckpointError: there is none, or one of another kind than these models'.
    """
    file = read_gguf(path, frozenset({TOKENS, TOKEN_TYPES}))
    tokens, types = file.metadata.get(TOKENS), file.metadata.get(TOKEN_TYPES)
    model = file.metadata.get("tokenizer.ggml.model")
    if model != "gpt2" or not isinstance(tokens, list) or not all(isinstance(token, bytes) for token in tokens):
        raise CheckpointError(f"{path}: its vocabulary is {model!r}; these models have byte-level BPE ('gpt2')")
    if types is None:
        types = [NORMAL] * len(tokens)
    if not isinstance(types, list) or len(types) != len(tokens):
        raise CheckpointError(f"{path}: {TOKEN_TYPES!r} does not tell a type for each of the {len(tokens)} tokens")
    end_of_text = CONTROL_NAMES[0].encode()
    start = tokens.index(end_of_text) if end_of_text in tokens else -1
    names = [token.decode("utf-8", errors="replace") for token in tokens[start : start + 3]]
    if start < 0 or names != list(CONTROL_NAMES):
        raise CheckpointError(f"{path}: its vocabulary has not {', '.join(CONTROL_NAMES)} in a row, as these models'")
    ranks: dict[bytes, int] = {}
    for token_id, token in enumerate(tokens):
        is_text = types[token_id] == NORMAL and not token.startswith(b"[PAD")
        if start <= token_id < start + NUM_CONTROL_TOKENS or (token_id >= start and not is_text):
            continue
        try:
            text = from_letters(token.decode("utf-8"))
        except (KeyError, UnicodeDecodeError) as e:
            raise CheckpointError(f"{path}: token {token_id} is not in the alphabet of bytes: {token[:40]!r}") from e
        if not text or text in ranks:
            raise CheckpointError(f"{path}: token {token_id} {'is empty' if not text else 'stands there twice'}")
        ranks[text] = token_id
    require_whole(ranks, path)
    return ranks
