"""llama.cpp as a peer on the same weights; runs in a Python of its own that has llama-cpp-python, gguf and numpy.

`python -m benchmarks.peers.llama_peer FOLDER` converts a checkpoint to GGUF once (BF16, no vocabulary) and loads it.
For each line of JSON on its input, which names a method of `Peer`, it prints a line of JSON with the figure. So a
benchmark can measure both engines in turns, with both loaded. Nothing of our engine is imported here.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import struct
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

BATCH = 512


def read_safetensors(path: Path) -> dict[str, tuple[str, list[int], np.ndarray]]:
    """Maps names to (dtype, shape, bytes)."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + length)
    return {
        name: (entry["dtype"], entry["shape"], data[entry["data_offsets"][0] : entry["data_offsets"][1]])
        for name, entry in header.items()
    }


def convert(folder: Path, target: Path, quantization: str) -> None:
    """Writes a GGUF file with the checkpoint's weights, in BF16 or quantised by llama.cpp itself."""
    source = folder / "model-bf16.gguf"
    if not source.exists():
        partial = source.with_suffix(".partial")
        _write_bf16(folder, partial)
        partial.rename(source)
    if quantization == "bf16":
        return
    parameters = llama_cpp.llama_model_quantize_default_params()
    types = {"q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0}
    parameters.ftype = types[quantization]
    partial = target.with_suffix(".partial")
    if llama_cpp.llama_model_quantize(str(source).encode(), str(partial).encode(), ctypes.byref(parameters)):
        raise SystemExit("llama.cpp cannot quantise this checkpoint")
    partial.rename(target)


def _write_bf16(folder: Path, target: Path) -> None:
    """Writes a GGUF file of architecture `qwen` with the checkpoint's BF16 weights; norms and biases in float32."""
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(str(target), "qwen")
    writer.add_context_length(config["seq_length"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_rope_freq_base(float(config["rotary_emb_base"]))
    writer.add_rope_dimension_count(config["kv_channels"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["layer_norm_epsilon"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for name, (dtype, shape, data) in read_safetensors(folder / "model.safetensors").items():
        if dtype != "BF16":
            raise SystemExit(f"{name} is {dtype}; only BF16 checkpoints are converted")
        words = data.view(np.uint16).reshape(shape)
        if len(shape) == 1:
            writer.add_tensor(_renamed(name), (words.astype(np.uint32) << 16).view(np.float32))
        else:
            rows = words.view(np.uint8).reshape(shape[0], -1)
            writer.add_tensor(_renamed(name), rows, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _renamed(name: str) -> str:
    simple = {
        "transformer.wte.weight": "token_embd.weight",
        "transformer.ln_f.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in simple:
        return simple[name]
    _, _, layer, rest = name.split(".", 3)
    parts = {
        "ln_1": "attn_norm",
        "ln_2": "ffn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "mlp.w1": "ffn_up",
        "mlp.w2": "ffn_gate",
        "mlp.c_proj": "ffn_down",
    }
    module, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{parts[module]}.{kind}"


def load(path: Path) -> Any:
    """Loads a GGUF file, silently."""
    llama_cpp.llama_backend_init()
    # llama.cpp tells every detail of a load on stderr; the reference keeps the callback alive.
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp cannot load {path}")
    return model, silent


class Context:
    """A context of llama.cpp and its batch.

    Args:
        num_tokens: capacity for all sequences together.
        num_sequences: the largest number of sequences.
        kv: type of the KV cache, "f16" (the default) or "q8_0".
    """

    def __init__(self, model: Any, num_tokens: int, num_sequences: int, kv: str) -> None:
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = num_tokens
        parameters.n_batch = parameters.n_ubatch = BATCH
        parameters.n_seq_max = num_sequences
        parameters.n_threads = parameters.n_threads_batch = os.cpu_count() or 1
        if kv == "q8_0":
            parameters.type_k = parameters.type_v = llama_cpp.GGML_TYPE_Q8_0
        self._context = llama_cpp.llama_init_from_model(model, parameters)
        if not self._context:
            raise SystemExit(f"llama.cpp has no room for {num_tokens} tokens of {num_sequences} sequences")
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self._generator = random.Random(num_sequences)

    def prefill(self, sequence: int, first: int, last: int) -> None:
        """Computes random tokens at positions `first` up to `last`, a batch at a time."""
        for low in range(first, last, BATCH):
            positions = range(low, min(low + BATCH, last))
            self._run([(self._generator.randrange(self.vocab_size), position, sequence) for position in positions])

    def decode(self, num_sequences: int, first: int, num_tokens: int) -> float:
        """Seconds that a step takes, the median of greedy ones from position `first` on."""
        steps = []
        next_ids = [0] * num_sequences
        for step in range(num_tokens):
            started = time.perf_counter()
            self._run([(next_ids[i], first + step, i) for i in range(num_sequences)], num_sequences)
            next_ids = [self._likeliest(i) for i in range(num_sequences)]
            steps.append(time.perf_counter() - started)
        return sorted(steps)[len(steps) // 2]

    def feed(self, token_ids: list[int], first: int, num_rows: int) -> None:
        """Computes given tokens of the first sequence from position `first`, and samples greedily in the last rows."""
        for low in range(0, len(token_ids), BATCH):
            part = token_ids[low : low + BATCH]
            self._run([(token_id, first + low + i, 0) for i, token_id in enumerate(part)], num_rows)
        for i in range(num_rows):
            self._likeliest(i - num_rows)

    def forget(self, first: int) -> None:
        """Drops the tokens of the first sequence from a position on."""
        memory = llama_cpp.llama_get_memory(self._context)
        llama_cpp.llama_memory_seq_rm(memory, 0, first, -1)

    def close(self) -> None:
        """Gives the memory back."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)

    def _likeliest(self, row: int) -> int:
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self._context, row), (self.vocab_size,))
        return int(logits.argmax())

    def _run(self, entries: list[tuple[int, int, int]], num_logits: int = 1) -> None:
        batch = self._batch
        batch.n_tokens = len(entries)
        for i, (token_id, position, sequence) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token_id, position, 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = i >= len(entries) - num_logits
        if llama_cpp.llama_decode(self._context, batch):
            raise SystemExit("llama_decode failed")


class Peer:
    """The methods that requests name."""

    def __init__(self, model: Any, kv: str) -> None:
        self._model, self._kv = model, kv
        self._long: Context | None = None  # of one sequence that grows
        self._length = 0

    def batch(self, batch_size: int, prompt_len: int, num_tokens: int) -> float:
        """Tokens a second while `batch_size` sequences decode together, prefill left out."""
        context = Context(self._model, batch_size * (prompt_len + num_tokens + 8), batch_size, self._kv)
        for sequence in range(batch_size):
            context.prefill(sequence, 0, prompt_len)
        seconds = context.decode(batch_size, prompt_len, num_tokens)
        context.close()
        return batch_size / seconds

    def open(self, num_tokens: int) -> float:
        """Makes room for one sequence of so many tokens."""
        self._long, self._length = Context(self._model, num_tokens, 1, self._kv), 0
        return 0.0

    def grow(self, length: int) -> float:
        """Seconds until the sequence has that length."""
        assert self._long is not None
        started = time.perf_counter()
        self._long.prefill(0, self._length, length)
        self._length = length
        return time.perf_counter() - started

    def decode(self, num_tokens: int) -> float:
        """Seconds of a step that decodes behind the sequence, which stays as long as it is."""
        assert self._long is not None
        seconds = self._long.decode(1, self._length, num_tokens)
        self._long.forget(self._length)
        return seconds

    def reply(self, prompt: list[int], reply: list[int], num_guessed: int) -> float:
        """Returns the tokens per second of a given reply after its first token.

        Args:
            num_guessed: tokens that llama.cpp's prompt lookup guesses ahead; 0 turns it off.
        """
        context = Context(self._model, len(prompt) + len(reply) + 32, 1, self._kv)
        context.feed(prompt, 0, 1)
        lookup = LlamaPromptLookupDecoding(num_pred_tokens=num_guessed) if num_guessed else None
        num_done = 1
        started = time.perf_counter()
        while num_done < len(reply):
            guesses: list[int] = []
            if lookup is not None:
                known = np.array(prompt + reply[:num_done], dtype=np.intc)
                guesses = [int(token_id) for token_id in lookup(known)][: len(reply) - num_done - 1]
            position = len(prompt) + num_done - 1
            context.feed([reply[num_done - 1], *guesses], position, 1 + len(guesses))
            num_right = 0
            while num_right < len(guesses) and guesses[num_right] == reply[num_done + num_right]:
                num_right += 1
            if num_right < len(guesses):
                context.forget(position + 1 + num_right)
            num_done += num_right + 1
        elapsed = time.perf_counter() - started
        context.close()
        return (len(reply) - 1) / elapsed


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="llama.cpp's speed on a checkpoint; requests come a line each.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quantization", choices=["bf16", "q4_0", "q8_0"], default="bf16")
    parser.add_argument("--kv", choices=["f16", "q8_0"], default="f16")
    arguments = parser.parse_args()
    target = arguments.folder / f"model-{arguments.quantization}.gguf"
    if not target.exists():
        convert(arguments.folder, target, arguments.quantization)
    model, _silent = load(target)
    peer = Peer(model, arguments.kv)
    for line in sys.stdin:
        request = json.loads(line)
        figure = getattr(peer, request.pop("do"))(**request)
        print(json.dumps({"figure": figure, "version": llama_cpp.__version__}), flush=True)


if __name__ == "__main__":
    main()
