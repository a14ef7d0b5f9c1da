"""Measures perplexity by length: `python -m tools.perplexity.run MODEL`.

The weights are loaded once: the rows of the table differ in the rotary base (NTK), a factor on queries (LogN) and how
far back layers read (windows). A piece of text of the longest length is cut into pieces of each shorter one, so that
all columns read the same text; each piece is a prompt of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from model.architectures import make_model
from model.backends import make_backend
from model.contract.config import NO_QUANTIZATION, ModelConfig
from model.contract.errors import ConfigError
from model.contract.files.model_config import read_model_config
from model.contract.tokenizer import Tokenizer
from model.execution.checkpoint import load_weights
from model.execution.forward_batch import ForwardBatch, SequenceSpan
from model.execution.kv_cache import allocate_kv_cache
from model.execution.tensor_files import stored_rows
from model.quantization import linear_maker
from model.quantization.offline.calibration import calibration_samples
from tools.perplexity.options import add_arguments
from tools.process import parse_arguments, run_work

_BLOCK_SIZE = 16
_CHUNK = 512  # tokens of a step
_LOGIT_ROWS = 64  # at a time: a row has the vocabulary's size


class Means(NamedTuple):
    """A row of the table: which of the means beyond the trained length are on.

    Attributes:
        name: as the published table has it.
        config: the checkpoint's numbers with these means.
    """

    name: str
    config: ModelConfig


def rows_of(config: ModelConfig, windows: tuple[int, ...]) -> list[Means]:
    """Returns the rows of the published table for any checkpoint; `windows` are those of the last row."""
    plain = replace(config, use_dynamic_ntk=False, use_logn_attn=False, attention_windows=())
    ntk = replace(plain, use_dynamic_ntk=True)
    logn = replace(ntk, use_logn_attn=True)
    return [
        Means("none", plain),
        Means("dynamic_ntk", ntk),
        Means("dynamic_ntk + logn", logn),
        Means("dynamic_ntk + logn + window_attn", logn.with_windows(windows)),
    ]


def default_windows(config: ModelConfig) -> tuple[int, ...]:
    """Returns a window for each layer, shorter in lower ones: a quarter, a half and all of the trained length."""
    sizes = [max(1, config.seq_length // part) for part in (4, 2, 1)]
    return tuple(sizes[3 * layer // config.num_layers] for layer in range(config.num_layers))


class Reader:
    """A loaded checkpoint that computes the likelihood of a text.

    Args:
        folder: a checkpoint's folder, or a GGUF file.
        dtype: dtype of activations, or "auto".
        device: "auto", "cpu", "cuda[:N]" and so on.
        num_threads: CPU threads, or None.
    """

    def __init__(self, folder: Path, dtype: str, device: str, num_threads: int | None) -> None:
        self.config = read_model_config(folder, stored_rows)
        self._backend = make_backend(device, "auto")
        self._dtype = self._backend.resolve_dtype(dtype, self.config.declared_dtype)
        with torch.inference_mode():
            make_linear = linear_maker(self.config, self._backend, self._dtype, NO_QUANTIZATION)
            self._model = make_model(self.config, make_linear, self._backend, self._dtype)
            num_bytes = load_weights(self._model, folder, self._backend.device)
            self._backend.set_num_threads(num_threads, num_bytes)
            # With windows, so that kernels that have them are tried too.
            windowed = self.config.with_windows((_CHUNK,))
            self._backend.finish_loading(windowed, self._dtype, self._dtype, _BLOCK_SIZE)

    @property
    def dtype(self) -> str:
        """The dtype of activations and cache."""
        return str(self._dtype).removeprefix("torch.")

    def log_likelihoods(self, ids: list[int], config: ModelConfig) -> Iterator[float]:
        """Yields, chunk by chunk, the sums of the natural logarithms of each token's probability.

        Args:
            ids: a text; the first token is not scored.
            config: the checkpoint's numbers, with the means that are on.
        """
        num_blocks = -(-len(ids) // _BLOCK_SIZE)
        device = self._backend.device
        cache = allocate_kv_cache(
            config, num_blocks=num_blocks, block_size=_BLOCK_SIZE, dtype=self._dtype, device=device
        )
        alpha = config.rope_alpha(len(ids))
        for start in range(0, len(ids), _CHUNK):
            chunk = ids[start : start + _CHUNK]
            following = torch.tensor(ids[start + 1 : start + 1 + len(chunk)], device=device)
            span = SequenceSpan(chunk, start, alpha, list(range(num_blocks)), len(chunk))
            total = 0.0
            with torch.inference_mode():
                hidden = self._model(ForwardBatch.build([span], config, _BLOCK_SIZE, device), cache)
                for low in range(0, len(following), _LOGIT_ROWS):
                    logs = self._model.logits(hidden[low : low + _LOGIT_ROWS]).log_softmax(-1)
                    next_ids = following[low : low + _LOGIT_ROWS]
                    total += float(logs[: len(next_ids)].gather(1, next_ids[:, None]).double().sum())
            yield total


def measure(reader: Reader, pieces: list[list[int]], lengths: list[int], rows: list[Means]) -> list[list[float]]:
    """Returns perplexities, a list a row, one a length.

    Args:
        pieces: token ids of text, each as long as the longest length.
        lengths: ascending.
    """
    table = [[0.0] * len(lengths) for _ in rows]
    num_tokens = sum(len(piece) // length * length for piece in pieces for length in lengths)
    with tqdm(total=num_tokens * len(rows), unit="token", desc="reading") as bar:
        for column, length in enumerate(lengths):
            parts = [piece[low : low + length] for piece in pieces for low in range(0, len(piece) - length + 1, length)]
            for row, means in enumerate(rows):
                total = 0.0
                for part in parts:
                    for sum_of_chunk in reader.log_likelihoods(part, means.config):
                        total += sum_of_chunk
                    bar.update(length)
                table[row][column] = math.exp(min(-total / (len(parts) * (length - 1)), 700.0))
    return table


def _run(arguments: argparse.Namespace) -> None:
    folder = Path(arguments.source)
    reader = Reader(folder, arguments.dtype, arguments.device, arguments.threads)
    trained = reader.config.seq_length
    lengths = sorted({trained * int(each[:-1]) if each[-1] == "x" else int(each) for each in arguments.lengths})
    if lengths[0] < 2:
        raise ConfigError("--lengths: a text of one token has nothing to be predicted")
    windows = arguments.attention_window
    windows = default_windows(reader.config) if windows is None else tuple(map(int, windows))
    rows = rows_of(reader.config, windows)
    try:
        samples = calibration_samples(
            Tokenizer.from_folder(folder),
            arguments.text,
            num_samples=arguments.num_pieces,
            sample_length=lengths[-1],
            seed=0,
        )
    except ConfigError as error:
        raise ConfigError(str(error).replace("--sample-length", "--lengths")) from error
    table = measure(reader, samples.tolist(), lengths, rows)
    figures = {
        "model": folder.resolve().name,
        "trained_length": trained,
        "dtype": reader.dtype,
        "num_tokens": samples.numel(),
        "lengths": lengths,
        "attention_windows": list(rows[-1].config.attention_windows),
        "perplexity": {means.name: values for means, values in zip(rows, table, strict=True)},
    }
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(as_table(figures))


def as_table(figures: dict[str, Any]) -> str:
    """Writes the figures for people, in Markdown."""
    lengths: list[int] = figures["lengths"]
    lines = [
        f"{figures['model']}, trained at {figures['trained_length']} tokens, {figures['dtype']};"
        f" perplexity over {figures['num_tokens']} tokens; windows {figures['attention_windows']}",
        "",
        "| | " + " | ".join(map(str, lengths)) + " |",
        "|---|" + "---|" * len(lengths),
    ]
    for name, values in figures["perplexity"].items():
        cells = [f"{value:.2f}" if value < 1e4 else f"{value:.0e}" for value in values]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Runs the process and returns its exit status."""
    arguments = parse_arguments("tools.perplexity.run", __doc__, add_arguments)
    return run_work(lambda: _run(arguments), out_of_memory="try shorter --lengths", interrupted="nothing was measured")


if __name__ == "__main__":
    sys.exit(main())
