"""One step's tensors: where each token is, where its key goes, what rotates and scales it."""

from __future__ import annotations

import math
import random

import pytest
import torch

from model.contract.config import ModelConfig
from model.execution.forward_batch import ForwardBatch, SequenceSpan, inverse_frequencies, query_scale

CPU = torch.device("cpu")


def make_config(
    *, seq_length: int = 8, head_dim: int = 8, rotary_dim: int | None = None, ntk: bool = True, logn: bool = True
) -> ModelConfig:
    return ModelConfig(
        vocab_size=100,
        hidden_size=2 * head_dim,
        num_layers=1,
        num_heads=2,
        head_dim=head_dim,
        intermediate_size=8,
        seq_length=seq_length,
        rotary_base=10000.0,
        rotary_dim=head_dim if rotary_dim is None else rotary_dim,
        layer_norm_epsilon=1e-6,
        use_dynamic_ntk=ntk,
        use_logn_attn=logn,
        has_bias=False,
        declared_dtype=None,
        quantization=None,
    )


def published_angles(config: ModelConfig, alpha: float, num_positions: int) -> torch.Tensor:
    """`RotaryEmbedding.update_rotary_pos_emb_cache` of the published modeling_qwen.py."""
    dim = config.rotary_dim
    base = config.rotary_base * alpha ** (dim / (dim - 2))
    inv_freq = 1.0 / (base ** (torch.arange(0, dim, 2).float() / dim))
    return torch.outer(torch.arange(num_positions).type_as(inv_freq), inv_freq)


def assert_turned(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal, but for the rounding of a cosine or sine."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


def random_span(rng: random.Random, block_size: int) -> SequenceSpan:
    start = rng.choice([0, rng.randrange(0, 40)])
    num_tokens = rng.choice([1, rng.randrange(1, 30)])
    table = rng.sample(range(200), -(-(start + num_tokens) // block_size) + rng.randrange(3))
    return SequenceSpan(
        token_ids=[rng.randrange(100) for _ in range(num_tokens)],
        start=start,
        rope_alpha=rng.choice([1.0, 1.0, 3.0, 7.0]),
        block_table=table,
        num_logit_rows=rng.choice([0, 1, num_tokens]),
    )


@pytest.mark.parametrize("seed", range(20))
def test_layout_of_random_steps(seed: int) -> None:
    rng = random.Random(seed)
    block_size = rng.choice([1, 3, 16])
    config = make_config()
    spans = [random_span(rng, block_size) for _ in range(rng.randrange(1, 9))]
    batch = ForwardBatch.build(spans, config, block_size, CPU)
    row = 0
    positions, logit_rows = [], []
    for span in spans:
        angles = published_angles(config, span.rope_alpha, 80)
        for i, token_id in enumerate(span.token_ids):
            position = span.start + i
            positions.append(position)
            assert batch.token_ids[row] == token_id
            assert batch.slots[row] == span.block_table[position // block_size] * block_size + position % block_size
            assert_turned(batch.cos.expand(len(batch.slots), -1)[row], angles[position].cos())
            assert_turned(batch.sin.expand(len(batch.slots), -1)[row], angles[position].sin())
            if i >= span.num_tokens - span.num_logit_rows:
                logit_rows.append(row)
            row += 1
    assert len(batch.token_ids) == len(batch.slots) == len(batch.cos) == row
    assert batch.query_scale.shape == (row,)
    assert batch.logit_rows.tolist() == logit_rows
    assert torch.equal(batch.query_scale, query_scale(torch.tensor(positions), config))


def test_a_batch_without_logits() -> None:
    batch = ForwardBatch.build([SequenceSpan([1, 2, 3], 0, 1.0, [4], 0)], make_config(), 16, CPU)
    assert batch.logit_rows.tolist() == []
    assert batch.slots.tolist() == [64, 65, 66]


@pytest.mark.parametrize("alpha", [1.0, 3.0, 7.0, 15.0])
@pytest.mark.parametrize("dim", [4, 32, 128])
def test_inverse_frequencies(dim: int, alpha: float) -> None:
    config = make_config(head_dim=dim)
    base = 10000.0 * alpha ** (dim / (dim - 2))
    exact = torch.tensor([base ** (-2 * i / dim) for i in range(dim // 2)], dtype=torch.float64)
    torch.testing.assert_close(inverse_frequencies(config, alpha).double(), exact, rtol=1e-6, atol=0)


def test_inverse_frequencies_of_two_dims_cannot_be_stretched() -> None:
    assert inverse_frequencies(make_config(rotary_dim=2), 7.0).tolist() == [1.0]


def test_logn_begins_after_the_trained_length() -> None:
    config = make_config(seq_length=64, head_dim=16)
    scale = query_scale(torch.arange(40_000), config).double() * 4
    assert torch.all(scale[:64] == 1.0), "position 63 is the 64th token"
    exact = torch.tensor([math.log(p + 1) / math.log(64) for p in range(64, 40_000)], dtype=torch.float64)
    torch.testing.assert_close(scale[64:], exact, rtol=1e-6, atol=0)
    assert scale[64] > 1.0


@pytest.mark.parametrize("config", [make_config(logn=False), make_config(seq_length=1)], ids=["off", "seq_length 1"])
def test_without_logn(config: ModelConfig) -> None:
    assert torch.all(query_scale(torch.arange(100), config) == torch.tensor(8**-0.5))


def test_one_alpha_for_all_costs_one_row_of_frequencies() -> None:
    spans = [SequenceSpan([1], 5, 3.0, [0], 1), SequenceSpan([1, 2], 0, 3.0, [1], 1)]
    batch = ForwardBatch.build(spans, make_config(), 16, CPU)
    angles = published_angles(make_config(), 3.0, 6)
    assert_turned(batch.cos, angles[[5, 0, 1]].cos())


def test_alpha_of_a_long_prompt_reaches_the_angles() -> None:
    """The path from config to rotation: a prompt of 100 at seq_length 64 turns by alpha 3."""
    config = make_config(seq_length=64)
    alpha = config.rope_alpha(100)
    batch = ForwardBatch.build([SequenceSpan([1], 99, alpha, list(range(7)), 1)], config, 16, CPU)
    assert alpha == 3.0
    assert_turned(batch.sin[0], published_angles(config, 3.0, 100)[99].sin())
