"""The roofline benchmark on a tiny shape and a CPU: all of it but the GPU."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from benchmarks.roofline.__main__ import parse, run
from benchmarks.roofline.device_limits import matmul_flops_per_s
from benchmarks.roofline.measure import Load, block_flops_per_token, kv_bytes_per_token
from benchmarks.roofline.random_model import SHAPES, make_engine
from benchmarks.roofline.report import draw, table

SMALL = [
    "--shapes", "tiny", "--device", "cpu", "--dtype", "float32", "--batch-sizes", "1", "3", "--prompt-len", "9",
    "--num-tokens", "8", "--prefill-len", "40", "--max-model-len", "128", "--kv-cache-memory-bytes", "2000000",
]  # fmt: skip


def test_a_tiny_run(tmp_path: Path) -> None:
    figures = run(parse(SMALL))
    assert json.loads(json.dumps(figures)) == figures
    (shape,) = figures["shapes"]
    assert [row["batch_size"] for row in shape["decode"]] == [1, 3]
    tiny = SHAPES["tiny"]
    inner = tiny.intermediate_size // 2
    block = 4 * tiny.hidden_size**2 + 3 * tiny.hidden_size * inner + 3 * tiny.hidden_size + 2 * tiny.hidden_size
    weights = 4 * (tiny.num_layers * block + tiny.vocab_size * tiny.hidden_size + tiny.hidden_size)
    keys = 3 * (9 + 8 / 2) * 2 * tiny.num_layers * tiny.hidden_size * 4
    assert shape["decode"][1]["bytes_per_step"] == weights + keys
    for row in shape["decode"]:
        assert row["tokens_per_s"] == pytest.approx(row["batch_size"] / row["ms_per_step"] * 1e3)
        assert 0 < row["share_of_limit"]
    text = table(figures)
    assert text.count("| tiny |") == 3
    draw(figures, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_the_published_sizes() -> None:
    """Parameters of each shape, from the operations of a token: twice all but the embedding."""
    billions = {name: block_flops_per_token(shape) / 2e9 for name, shape in SHAPES.items()}
    assert billions["1.8b"] == pytest.approx(1.5, abs=0.1)
    assert billions["7b"] == pytest.approx(7.1, abs=0.1)
    assert billions["14b"] == pytest.approx(13.4, abs=0.1)
    assert billions["72b-int4"] == pytest.approx(71.0, abs=0.3)
    assert kv_bytes_per_token(SHAPES["7b"], 2) == 512 << 10


def test_quantised_weights_without_a_checkpoint() -> None:
    shape = dataclasses.replace(SHAPES["tiny"], quantized_bits=4)
    engine = make_engine(shape, device="cpu", dtype="float32", max_model_len=64, kv_cache_memory_bytes=1 << 20)
    load = Load(engine, shape.vocab_size)
    load.add(1, 5, 3)
    load.drain()
    assert not engine.has_work()


def test_matmul_peak_is_a_rate() -> None:
    assert matmul_flops_per_s(torch.device("cpu"), torch.float32) > 1e8
