"""llama.cpp generating replies that are written down, with and without its own prompt lookup; see speculation.py.

Runs in a Python of its own that has llama-cpp-python, gguf and numpy, and reads a line of JSON for each reply.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from benchmarks.llama_peer import convert, load

_BATCH = 512


class ToldContext:
    """A context that is fed tokens, and takes back those that were guessed wrong.

    Args:
        model: loaded.
        num_tokens: prompt and reply.
    """

    def __init__(self, model: Any, num_tokens: int) -> None:
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = num_tokens + 32
        parameters.n_batch = parameters.n_ubatch = _BATCH
        parameters.n_seq_max = 1
        parameters.n_threads = parameters.n_threads_batch = os.cpu_count() or 1
        self._context = llama_cpp.llama_init_from_model(model, parameters)
        self._batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)
        self._num_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._num_cached = 0

    def close(self) -> None:
        """Frees it."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)

    def decode(self, token_ids: list[int], num_logit_rows: int) -> None:
        """Computes tokens, and picks the likeliest token of the last rows as sampling would."""
        for low in range(0, len(token_ids), _BATCH):
            part = token_ids[low : low + _BATCH]
            batch = self._batch
            batch.n_tokens = len(part)
            for i, token_id in enumerate(part):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = token_id, self._num_cached + i, 1
                batch.seq_id[i][0] = 0
                batch.logits[i] = low + i >= len(token_ids) - num_logit_rows
            if llama_cpp.llama_decode(self._context, batch):
                raise SystemExit("llama_decode failed")
            self._num_cached += len(part)
        for i in range(num_logit_rows):
            row = llama_cpp.llama_get_logits_ith(self._context, i - num_logit_rows)
            np.ctypeslib.as_array(row, (self._num_vocab,)).argmax()

    def forget(self, num_tokens: int) -> None:
        """Takes the last tokens out of the cache."""
        if num_tokens:
            self._num_cached -= num_tokens
            llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self._context), 0, self._num_cached, -1)


def measure(model: Any, prompt: list[int], reply: list[int], num_guessed: int) -> float:
    """Tokens a second of a reply, from its first token on."""
    context = ToldContext(model, len(prompt) + len(reply))
    context.decode(prompt, 1)
    lookup = LlamaPromptLookupDecoding(num_pred_tokens=num_guessed) if num_guessed else None
    num_done = 1
    started = time.perf_counter()
    while num_done < len(reply):
        guesses: list[int] = []
        if lookup is not None:
            known = np.array(prompt + reply[:num_done], dtype=np.intc)
            guesses = [int(token_id) for token_id in lookup(known)][: len(reply) - num_done - 1]
        context.decode([reply[num_done - 1], *guesses], 1 + len(guesses))
        num_right = 0
        while num_right < len(guesses) and guesses[num_right] == reply[num_done + num_right]:
            num_right += 1
        context.forget(len(guesses) - num_right)
        num_done += num_right + 1
    elapsed = time.perf_counter() - started
    context.close()
    return (len(reply) - 1) / elapsed


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="llama.cpp's speed on given replies.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quantization", choices=["bf16", "q4_0", "q8_0"], default="q4_0")
    arguments = parser.parse_args()
    target = arguments.folder / f"model-{arguments.quantization}.gguf"
    if not target.exists():
        convert(arguments.folder, target, arguments.quantization)
    model, _silent = load(target)
    for line in sys.stdin:
        rate = measure(model, **json.loads(line))
        print(json.dumps({"tokens_per_s": rate, "version": llama_cpp.__version__}), flush=True)


if __name__ == "__main__":
    main()
