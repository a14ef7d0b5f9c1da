"""Rotary angles of all positions, made once on the device: a step gathers its own there."""

from __future__ import annotations

from typing import NamedTuple

import torch

from model.backends.cpu.rows.angles import cos_sin
from model.backends.cuda.kernels.decode_inputs import AngleTables
from model.contract.config import ModelConfig
from model.execution.forward_batch import inverse_frequencies, query_scale


class Angles(NamedTuple):
    """Angles of all positions for every alpha that a prompt may have.

    Attributes:
        rows: the row of each alpha in the tables.
        tables: angles and query factors, on the device.
    """

    rows: dict[float, int]
    tables: AngleTables

    @classmethod
    def make(cls, config: ModelConfig, max_model_len: int, device: torch.device) -> Angles:
        """Computes them on the CPU as `ForwardBatch.build` does, so they are the same to the digit."""
        alphas = _alphas(config, max_model_len)
        positions = torch.arange(max_model_len, dtype=torch.int64)
        pairs = [
            cos_sin(positions.to(torch.float32)[:, None] * inverse_frequencies(config, alpha)[None])
            for alpha in alphas
        ]
        tables = AngleTables(
            torch.stack([cos for cos, _ in pairs]).to(device),
            torch.stack([sin for _, sin in pairs]).to(device),
            query_scale(positions, config).to(device),
        )
        return cls({alpha: row for row, alpha in enumerate(alphas)}, tables)


def angle_table_bytes(config: ModelConfig, max_model_len: int) -> int:
    """Bytes of the tables of `Angles.make`: 17 MB an alpha at 32,768 positions of 128 rotated dimensions."""
    return 4 * max_model_len * (len(_alphas(config, max_model_len)) * config.rotary_dim + 1)


def _alphas(config: ModelConfig, max_model_len: int) -> list[float]:
    """Returns every value that `ModelConfig.rope_alpha` has for some length, ascending."""
    lengths = {1, max_model_len}
    length = config.seq_length
    while length < max_model_len:
        lengths.add(length + 1)
        length *= 2
    return sorted({config.rope_alpha(n) for n in lengths})
