"""Sampling against plain float64 references: distributions, penalties, masks, streams, and rows that stay apart."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
import torch

from model.contract.messages import MIN_LOGPROB
from model.contract.sampling_params import SamplingParams
from model.sampling.sampler import SampledToken, Sampler, forbidden_tokens, prompt_logprobs
from model.sampling.sampling_row import SamplingRow, stream_key, uniform

CPU = torch.device("cpu")
NAN, INF = math.nan, math.inf


def make_row(
    seq_id: int = 0, prompt: Iterable[int] = (1, 2), output: Iterable[int] = (), key: int | None = None, **sampling: Any
) -> SamplingRow:
    prompt, output = list(prompt), list(output)
    params = SamplingParams(**{"max_tokens": 100, "temperature": 0.0, **sampling})
    return SamplingRow(seq_id, params, prompt + output, len(prompt), stream_key(1, seq_id) if key is None else key)


def make_sampler(vocab_size: int, max_num_seqs: int = 64, max_model_len: int = 64) -> Sampler:
    return Sampler(vocab_size, CPU, max_num_seqs, max_model_len)


def launch(
    sampler: Sampler, logits: torch.Tensor, rows: list[SamplingRow], masks: torch.Tensor | None = None
) -> list[SampledToken]:
    """Picks tokens and waits for them."""
    output = sampler.launch(logits, rows, masks)
    return output.read(output.tensors)


def sample(logits: torch.Tensor, rows: list[SamplingRow], masks: torch.Tensor | None = None) -> list[SampledToken]:
    return launch(make_sampler(logits.shape[-1], max(64, len(rows))), logits.clone(), rows, masks)


def sample_ids(logits: torch.Tensor, rows: list[SamplingRow], masks: torch.Tensor | None = None) -> list[int]:
    tokens = sample(logits, rows, masks)
    assert all(token.is_valid for token in tokens)
    return [token.token_id for token in tokens]


def processed(logits: torch.Tensor, rows: list[SamplingRow], sampler: Sampler | None = None) -> torch.Tensor:
    """What is left of the logits when a greedy row's largest is sought in them."""
    assert all(row.sampling.temperature == 0 for row in rows)
    logits = logits.clone()
    launch(sampler or make_sampler(logits.shape[-1]), logits, rows)
    return logits


# --- distributions


def reference_probs(
    logits: torch.Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> torch.Tensor:
    """Transformers' warpers in float64, in the order in which `generate` applies them."""
    scores = logits.double() / temperature
    if 0 < top_k < len(scores):
        scores = scores.masked_fill(scores < scores.topk(top_k).values[-1], -INF)
    if top_p < 1.0:
        ascending, order = scores.sort()
        is_removed = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        is_removed[-1] = False
        scores = scores.masked_fill(torch.empty_like(is_removed).scatter_(0, order, is_removed), -INF)
    if min_p > 0.0:
        probs = scores.softmax(-1)
        scores = scores.masked_fill(probs < min_p * probs.max(), -INF)
    return scores.softmax(-1)


def draw_many(logits: torch.Tensor, num_draws: int, **sampling: Any) -> Counter[int]:
    """Draws from one row of logits with as many different numbers."""
    num_rows = max(1, min(num_draws, 2_000_000 // len(logits)))
    counts: Counter[int] = Counter()
    params = make_row(**sampling).sampling
    for first in range(0, num_draws, num_rows):
        rows = [SamplingRow(0, params, [1] * (1 + i % 5), 1, stream_key(first + i, i % 3)) for i in range(num_rows)]
        counts.update(sample_ids(logits.expand(num_rows, -1), rows))
    return counts


def assert_drawn_from(counts: Counter[int], probs: torch.Tensor, num_groups: int = 50) -> None:
    """Chi-square over groups of tokens of neighbouring probabilities; impossible tokens may not occur at all."""
    num_draws = counts.total()
    observed = torch.zeros(len(probs), dtype=torch.float64)
    for token_id, count in counts.items():
        observed[token_id] = count
    assert observed[probs == 0].sum() == 0, "a token that the filters remove was drawn"
    order = probs.argsort(descending=True)
    group_of = (probs[order].cumsum(0) * num_groups).ceil().long().clamp(1, num_groups) - 1
    expected = torch.zeros(num_groups, dtype=torch.float64).index_add_(0, group_of, probs[order]) * num_draws
    found = torch.zeros(num_groups, dtype=torch.float64).index_add_(0, group_of, observed[order])
    is_used = expected > 5
    degrees = int(is_used.sum()) - 1
    if degrees < 1:
        return
    statistic = float(((found - expected)[is_used] ** 2 / expected[is_used]).sum())
    # Wilson and Hilferty: the cube root is nearly normal. Beyond 3.7 sigma is one chance in ten thousand.
    z = ((statistic / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / math.sqrt(2 / (9 * degrees))
    assert z < 3.7, f"chi-square {statistic:.1f} with {degrees} degrees of freedom"


def random_logits(vocab_size: int, scale: float = 2.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed)) * scale


FILTERS: dict[str, dict[str, float]] = {
    "plain": {},
    "cold": {"temperature": 0.5},
    "hot": {"temperature": 2.0},
    "top_k 1": {"top_k": 1},
    "top_k 5": {"top_k": 5},
    "top_k 5 hot": {"top_k": 5, "temperature": 2.0},
    "top_k beyond the vocabulary": {"top_k": 10**6},
    "top_p": {"top_p": 0.8},
    "top_p tiny": {"top_p": 1e-6},
    "top_p nearly 1": {"top_p": 0.9999},
    "min_p": {"min_p": 0.1},
    "min_p 1": {"min_p": 1.0},
    "top_k, top_p": {"top_k": 12, "top_p": 0.7},
    "top_p, min_p": {"top_p": 0.9, "min_p": 0.05, "temperature": 1.3},
    "all": {"top_k": 15, "top_p": 0.85, "min_p": 0.08, "temperature": 1.5},
}


@pytest.mark.parametrize("name", FILTERS)
def test_distributions(name: str) -> None:
    sampling: dict[str, Any] = {"temperature": 1.0, **FILTERS[name]}
    logits = random_logits(200, seed=2)
    probs = reference_probs(logits, **sampling)
    counts = draw_many(logits, 5000, **sampling)
    assert_drawn_from(counts, probs)
    assert {i for i, p in enumerate(probs.tolist()) if p > 0.005} <= counts.keys(), "a token that is kept never occurs"


# In a vocabulary whose tokens are nearly alike, small numbers of candidates do not hold what these keep, or hold it but
# not what decides it. (Here looked for among 16, then 128 of 1,500.)
FLAT_FILTERS: dict[str, dict[str, float]] = {
    "top_p": {"top_p": 0.9},
    "top_p just above the first candidates": {"top_p": 0.02},
    "top_k": {"top_k": 1000},
    "top_k, top_p": {"top_k": 800, "top_p": 0.6},
    "top_k just above, top_p": {"top_k": 135, "top_p": 0.99},
    "top_k, min_p": {"top_k": 800, "min_p": 0.6},
    "min_p": {"min_p": 0.6},
    "min_p nothing": {"min_p": 1e-9},
    "top_p, min_p": {"top_p": 0.5, "min_p": 0.5},
    "top_k, top_p, and min_p within fewer": {"top_k": 200, "top_p": 0.6, "min_p": 0.68},
    "all": {"top_k": 1200, "top_p": 0.9, "min_p": 0.3},
}


@pytest.mark.parametrize("name", FLAT_FILTERS)
def test_flat_distributions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.sampling.torch_sampling._NUM_CANDIDATES", (16, 128))
    sampling: dict[str, Any] = {"temperature": 1.0, **FLAT_FILTERS[name]}
    logits = random_logits(1500, scale=0.2, seed=3)
    probs = reference_probs(logits, **sampling)
    assert int((probs > 0).sum()) > 16
    assert_drawn_from(draw_many(logits, 2000, **sampling), probs, 30)


@pytest.mark.parametrize("sampling", [{"top_p": 0.9}, {"top_k": 1030, "top_p": 0.9}, {"min_p": 0.5}])
def test_a_flat_distribution_of_a_large_vocabulary(sampling: dict[str, Any]) -> None:
    logits = random_logits(9000, scale=0.2, seed=3)
    probs = reference_probs(logits, **sampling)
    assert int((probs > 0).sum()) > 128
    assert_drawn_from(draw_many(logits, 200, temperature=1.0, **sampling), probs, 10)


@pytest.mark.parametrize("vocab_size", [127, 128, 129, 5000, 151_936])
@pytest.mark.parametrize("sampling", [{}, {"top_p": 0.7}, {"top_k": 100}, {"min_p": 0.02}])
def test_a_draw_inverts_the_cumulative_distribution(vocab_size: int, sampling: dict[str, Any]) -> None:
    """Exactly, not just on average: the token lies where the stream's number falls."""
    logits = random_logits(vocab_size, scale=1.5, seed=9)
    probs = reference_probs(logits, **sampling)
    # Filtered rows lie in order of probability, others in that of the vocabulary.
    order = probs.argsort(descending=True, stable=True) if sampling else torch.arange(vocab_size)
    cumulative = probs[order].cumsum(0)
    place = torch.empty_like(order)
    place[order] = torch.arange(vocab_size)
    num_rows = 12
    rows = [make_row(key=stream_key(i, 0), temperature=1.0, **sampling) for i in range(num_rows)]
    ids = sample_ids(logits.expand(num_rows, -1), rows)
    for row, token_id in zip(rows, ids, strict=True):
        number = uniform(row.stream_key, 0)
        end = float(cumulative[place[token_id]])
        assert end - float(probs[token_id]) - 1e-5 <= number <= end + 1e-5


def test_extreme_numbers_of_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ends of [0, 1): never a token of probability zero, whatever rounding does to the sums."""
    logits = torch.full((700,), -INF)
    logits[[3, 400, 650]] = torch.tensor([0.0, 1.0, 0.5])
    for sampling in ({}, {"top_p": 0.99}, {"top_k": 600}):
        for number, expected in ((0.0, 400 if sampling else 3), (1 - 2.0**-53, 3 if sampling else 650)):
            monkeypatch.setattr("model.sampling.torch_sampling.uniform", lambda key, index, number=number: number)
            assert sample_ids(logits[None], [make_row(temperature=1.0, **sampling)]) == [expected]


@pytest.mark.parametrize("temperature", [1e-5, 1e-30, 1e-60])
@pytest.mark.parametrize("sampling", [{}, {"top_p": 0.9}])
def test_a_tiny_temperature_is_greedy(temperature: float, sampling: dict[str, Any]) -> None:
    logits = torch.stack([random_logits(300, scale=20.0, seed=i) for i in range(20)])
    rows = [make_row(i, temperature=temperature, **sampling) for i in range(20)]
    assert sample_ids(logits, rows) == logits.argmax(-1).tolist()


def test_greedy_takes_the_first_of_equals() -> None:
    logits = torch.zeros(3, 1000)
    logits[1, [700, 130, 999]] = 5.0
    logits[2, 999] = 1.0
    assert sample_ids(logits, [make_row(i) for i in range(3)]) == [0, 130, 999]


# --- penalties, bias, endings


def reference_penalties(logits: torch.Tensor, row: SamplingRow) -> torch.Tensor:
    """Token by token, as SamplingParams describes it."""
    sampling, result = row.sampling, logits.double().clone()
    output = row.token_ids[row.num_prompt_tokens :]
    for token_id in set(row.token_ids):
        value = result[token_id]
        penalty = sampling.repetition_penalty
        result[token_id] = value / penalty if value > 0 else value * penalty
    for token_id, count in Counter(output).items():
        result[token_id] -= count * sampling.frequency_penalty + sampling.presence_penalty
    for token_id, bias in sampling.logit_bias:
        result[token_id] += bias
    if len(output) < sampling.min_tokens:
        result[list(sampling.ending_token_ids)] = -INF
    return result


def random_sampling(rng: random.Random) -> dict[str, Any]:
    return {
        "repetition_penalty": rng.choice([1.0, 1.0, 1.1, 2.0, 0.7]),
        "frequency_penalty": rng.choice([0.0, 0.0, 0.5, -1.0, 2.0]),
        "presence_penalty": rng.choice([0.0, 0.0, 0.7, -2.0]),
        "logit_bias": tuple(
            (rng.randrange(50), rng.choice([-100.0, 3.5, 100.0])) for _ in range(rng.choice([0, 0, 3]))
        ),
        "min_tokens": rng.choice([0, 0, 5]),
        "eos_token_ids": rng.choice([(), (7,), (7, 8)]),
        "stop_token_ids": rng.choice([(), (9,)]),
        "ignore_eos": rng.random() < 0.3,
    }


@pytest.mark.parametrize("seed", range(6))
def test_penalties_of_random_batches(seed: int) -> None:
    """Several steps of sequences that grow, with repeated ids in prompt and output."""
    rng = random.Random(seed)
    sampler = make_sampler(50, max_num_seqs=8)
    samplings = [random_sampling(rng) for _ in range(8)]
    prompts = [[rng.randrange(50) for _ in range(rng.randrange(1, 12))] for _ in range(8)]
    outputs: list[list[int]] = [[rng.randrange(50) for _ in range(rng.choice([0, 0, 6]))] for _ in range(8)]
    for step in range(8):
        present = sorted(rng.sample(range(8), rng.randrange(1, 9)), key=lambda _: rng.random())
        rows = [make_row(i, prompts[i], outputs[i], **samplings[i]) for i in present]
        logits = torch.stack([random_logits(50, seed=100 * step + i) for i in present])
        logits[0, 11] = -INF
        expected = torch.stack([reference_penalties(*pair) for pair in zip(logits, rows, strict=True)])
        torch.testing.assert_close(processed(logits, rows, sampler).double(), expected, rtol=1e-5, atol=1e-5)
        for i in present:
            outputs[i].append(rng.choice([rng.randrange(50), *prompts[i]]))


def test_presence_counts_once_and_frequency_every_time() -> None:
    row = make_row(prompt=[3, 3], output=[4, 4, 4, 5, 3], presence_penalty=1.0, frequency_penalty=0.25)
    result = processed(torch.zeros(1, 10), [row])[0]
    assert result.tolist() == [0, 0, 0, -1.25, -1.75, -1.25, 0, 0, 0, 0]


def test_repetition_penalty_looks_at_the_prompt_too_and_at_the_sign() -> None:
    row = make_row(prompt=[0, 1, 1], output=[2], repetition_penalty=2.0)
    result = processed(torch.tensor([[4.0, -4.0, 6.0, 4.0]]), [row])[0]
    assert result.tolist() == [2.0, -8.0, 3.0, 4.0]


def test_whole_numbers_where_floats_are_meant() -> None:
    """What came through JSON may be ints; no step of everybody may fail for that."""
    row = make_row(
        prompt=[0], output=[1], repetition_penalty=2, presence_penalty=1, frequency_penalty=1, logit_bias=((2, 5),)
    )
    assert processed(torch.tensor([[4.0, 4.0, 4.0, 4.0]]), [row])[0].tolist() == [2.0, 0.0, 9.0, 4.0]
    assert sample_ids(torch.tensor([[0.0, 9.0]]), [make_row(prompt=[0], temperature=1, top_p=1, min_p=1)]) == [1]


def test_logit_bias_bans_forces_and_adds_up() -> None:
    logits = torch.tensor([[5.0, 4.0, 3.0]] * 3)
    rows = [
        make_row(0, logit_bias=((0, -100.0),)),
        make_row(1, logit_bias=((2, 100.0),)),
        make_row(2, logit_bias=((1, 0.6), (1, 0.6))),
    ]
    assert sample_ids(logits, rows) == [1, 2, 1]


@pytest.mark.parametrize(("num_output", "expected"), [(0, 2), (2, 2), (3, 0), (4, 0)])
def test_min_tokens(num_output: int, expected: int) -> None:
    logits = torch.tensor([[5.0, 4.0, 3.0]])
    endings = {"eos_token_ids": (0,), "stop_token_ids": (1,), "min_tokens": 3}
    row = make_row(output=[2] * num_output, **endings)
    assert sample_ids(logits, [row]) == [expected]
    for temperature in (0.5, 1.0):
        random_row = make_row(output=[2] * num_output, temperature=temperature, top_p=0.9, **endings)
        if num_output < 3:
            assert sample_ids(logits, [random_row]) == [2]


def test_min_tokens_does_not_forbid_an_ignored_eos() -> None:
    row = make_row(eos_token_ids=(0,), stop_token_ids=(1,), min_tokens=3, ignore_eos=True)
    assert sample_ids(torch.tensor([[5.0, 9.0, 3.0]]), [row]) == [0]


def test_histories_survive_eviction_and_come_back_the_same() -> None:
    """Two places for six sequences that take turns, some having grown while they had none (preemption)."""
    sampler = make_sampler(30, max_num_seqs=2)
    rng = random.Random(5)
    outputs: list[list[int]] = [[] for _ in range(6)]
    penalties = {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.2}
    for step in range(60):
        present = rng.sample(range(6), rng.choice([1, 2]))
        rows = [make_row(i, [i, 7], outputs[i], **penalties) for i in present]
        logits = torch.stack([random_logits(30, seed=step)] * len(rows))
        expected = torch.stack([reference_penalties(*pair) for pair in zip(logits, rows, strict=True)])
        torch.testing.assert_close(processed(logits, rows, sampler).double(), expected, rtol=1e-5, atol=1e-5)
        for i in present:
            outputs[i].append(rng.randrange(30))
        assert len(sampler._history._slots) + len(sampler._history._free) == 2
        if step % 7 == 0:
            sampler.forget([*present, 999])
    sampler.forget(range(6))
    assert len(sampler._history._free) == 2
    assert not sampler._history._slots


def test_a_full_context_fits_the_history() -> None:
    sampler = make_sampler(30, max_num_seqs=1, max_model_len=16)
    row = make_row(prompt=[1] * 10, output=[2] * 5, frequency_penalty=1.0)
    assert processed(torch.zeros(1, 30), [row], sampler)[0, 2] == -5.0


# --- masks


def pack_bits(allowed: torch.Tensor) -> torch.Tensor:
    """[S, V] bool to [S, ceil(V / 32)] int32, bit by bit."""
    words = []
    for row in allowed.tolist():
        row += [False] * (-len(row) % 32)
        values = [sum(bit << i for i, bit in enumerate(row[w : w + 32])) for w in range(0, len(row), 32)]
        words.append([value - (1 << 32) if value >= 1 << 31 else value for value in values])
    return torch.tensor(words, dtype=torch.int32)


@pytest.mark.parametrize("vocab_size", [31, 32, 33, 300])
def test_masks(vocab_size: int) -> None:
    generator = torch.Generator().manual_seed(vocab_size)
    allowed = torch.rand(6, vocab_size, generator=generator) < 0.3
    allowed[:, -1] = True
    allowed[5] = True
    masks = pack_bits(allowed)
    assert torch.equal(forbidden_tokens(masks, vocab_size), ~allowed)
    logits = torch.randn(6, vocab_size, generator=generator)
    for step in range(20):
        rows = [
            make_row(i, [0], [0] * step, temperature=t, top_p=p, repetition_penalty=r, logit_bias=((0, 50.0),))
            for i, (t, p, r) in enumerate(
                [(0.0, 1.0, 1.0), (1.0, 1.0, 1.0), (1.5, 0.9, 1.0), (2.0, 1.0, 1.4), (1.0, 0.5, 1.2), (1.0, 1.0, 1.0)]
            )
        ]
        ids = sample_ids(logits, rows, masks)
        assert all(allowed[i, token_id] for i, token_id in enumerate(ids))
    best = logits.masked_fill(~allowed, -INF).argmax(-1).tolist()
    assert sample_ids(logits, [make_row(i) for i in range(6)], masks) == best


def test_a_mask_that_allows_nothing_is_reported() -> None:
    masks = torch.tensor([[0], [-1]], dtype=torch.int32)
    for temperature in (0.0, 1.0):
        rows = [make_row(i, temperature=temperature) for i in range(2)]
        tokens = sample(torch.randn(2, 20), rows, masks)
        assert [token.is_valid for token in tokens] == [False, True]


# --- rows that are not numbers


@pytest.mark.parametrize("bad", [[NAN] * 5000, [0.0] * 4999 + [NAN], [INF] + [0.0] * 4999, [-INF] * 5000])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.9, "top_k": 2000}])
def test_rows_that_are_not_numbers_harm_nobody_else(bad: list[float], sampling: dict[str, Any]) -> None:
    logits = torch.stack([random_logits(5000, seed=0), torch.tensor(bad), random_logits(5000, seed=1)])
    rows = [make_row(i, num_logprobs=2, repetition_penalty=1.2, **sampling) for i in range(3)]
    tokens = sample(logits, rows)
    assert [token.is_valid for token in tokens] == [True, False, True]
    assert 0 <= tokens[1].token_id < 5000
    alone = sample(logits[[0, 2]], [rows[0], rows[2]])
    assert [tokens[0], tokens[2]] == alone


def test_minus_infinity_is_an_impossible_token() -> None:
    logits = torch.full((1, 600), -INF)
    logits[0, [5, 500]] = torch.tensor([1.0, 1.0])
    seen = set()
    for step in range(40):
        for sampling in ({}, {"top_p": 0.99}, {"top_k": 300}, {"min_p": 1e-9}):
            rows = [
                make_row(key=stream_key(step, 0), temperature=2.0, repetition_penalty=1.5, num_logprobs=3, **sampling)
            ]
            (token,) = sample(logits, rows)
            seen.add(token.token_id)
            assert token.logprob is not None
            assert token.logprob.logprob == pytest.approx(math.log(0.5))
            assert token.logprob.top_logprobs[2] == MIN_LOGPROB
    assert seen == {5, 500}


# --- rows that stay apart


def random_row(rng: random.Random, seq_id: int, vocab_size: int) -> SamplingRow:
    return make_row(
        seq_id,
        [rng.randrange(vocab_size) for _ in range(rng.randrange(1, 20))],
        [rng.randrange(vocab_size) for _ in range(rng.randrange(0, 20))],
        temperature=rng.choice([0.0, 0.0, 0.7, 1.0, 2.0]),
        top_p=rng.choice([1.0, 1.0, 0.5, 0.95]),
        top_k=rng.choice([0, 0, 5, 1500]),
        min_p=rng.choice([0.0, 0.0, 0.1]),
        repetition_penalty=rng.choice([1.0, 1.2]),
        frequency_penalty=rng.choice([0.0, 0.5]),
        presence_penalty=rng.choice([0.0, 0.5]),
        logit_bias=rng.choice([(), ((3, 2.0), (4, -1.0))]),
        num_logprobs=rng.choice([None, 0, 3]),
        key=rng.getrandbits(64),
    )


@pytest.mark.parametrize("vocab_size", [300, 5000])
@pytest.mark.parametrize("seed", range(6))
def test_a_row_is_untouched_by_its_neighbours(seed: int, vocab_size: int) -> None:
    """Alone, in a crowd and in another order: the same token and, bit for bit, the same log-probabilities."""
    rng = random.Random(seed)
    logits = torch.stack(
        [random_logits(vocab_size, scale=rng.choice([0.1, 3.0]), seed=seed * 50 + i) for i in range(24)]
    )
    rows = [random_row(rng, i, vocab_size) for i in range(24)]
    together = sample(logits, rows)
    order = rng.sample(range(24), 24)
    shuffled = sample(logits[order], [rows[i] for i in order])
    for i, row in enumerate(rows):
        assert sample(logits[i : i + 1], [row]) == [together[i]]
        assert shuffled[order.index(i)] == together[i]


def test_greedy_is_the_largest_raw_logit_in_any_company() -> None:
    rng = random.Random(1)
    logits = torch.stack([random_logits(999, seed=i) for i in range(16)])
    rows = [make_row(i) if i % 2 else random_row(rng, i, 999) for i in range(16)]
    ids = sample_ids(logits, rows)
    assert ids[1::2] == logits.argmax(-1).tolist()[1::2]


def test_a_seed_gives_the_same_reply_whatever_else_runs() -> None:
    """A reply of 12 tokens, alone and among neighbours that come and go, at changing places in the batch."""
    logits_of = [random_logits(200, seed=i) for i in range(12)]

    def reply(crowd: random.Random | None) -> list[int]:
        sampler = make_sampler(200)
        output: list[int] = []
        for step in range(12):
            mine = make_row(7, [1], output, key=stream_key(42, 0), temperature=1.0, top_p=0.9, presence_penalty=0.3)
            others = (
                [] if crowd is None else [random_row(crowd, 100 + step * 9 + i, 200) for i in range(crowd.randrange(9))]
            )
            rows = [*others[:3], mine, *others[3:]]
            logits = torch.stack([logits_of[step]] * len(rows))
            output.append(launch(sampler, logits, rows)[len(others[:3])].token_id)
            sampler.forget(row.seq_id for row in others)
        return output

    alone = reply(None)
    assert len(set(alone)) > 4
    assert all(reply(random.Random(seed)) == alone for seed in range(4))


# --- streams


def test_choices_and_seeds_name_different_streams() -> None:
    keys = {stream_key(seed, choice) for seed in (*range(-50, 300), 2**31, 2**63, 2**64 - 1) for choice in range(8)}
    assert len(keys) >= 8 * 350, "only -1 and 2**64 - 1 are the same seed"
    assert stream_key(-1, 0) == stream_key(2**64 - 1, 0)
    logits = torch.zeros(8, 300)
    ids = [sample_ids(logits[:1], [make_row(key=stream_key(5, choice), temperature=1.0)])[0] for choice in range(8)]
    assert len(set(ids)) > 5


@pytest.mark.parametrize(
    "numbers",
    [
        [uniform(stream_key(0, 0), i) for i in range(20_000)],
        [uniform(stream_key(0, i), 0) for i in range(20_000)],
        [uniform(stream_key(i, 0), 0) for i in range(20_000)],
        [uniform(stream_key(i, i), i) for i in range(20_000)],
        [uniform(stream_key(i << 40, 0), 3) for i in range(20_000)],
    ],
    ids=["tokens", "choices", "seeds", "all", "high bits"],
)
def test_uniform_is_uniform_and_independent(numbers: list[float]) -> None:
    values = torch.tensor(numbers, dtype=torch.float64)
    count = len(values)
    assert 0.0 <= values.min() < 1e-3
    assert 1 - 1e-3 < values.max() < 1.0
    assert len(set(numbers)) == count
    assert abs(values.mean() - 0.5) < 4 * math.sqrt(1 / 12 / count)
    assert abs(values.var() - 1 / 12) < 4 * math.sqrt(1 / 180 / count)
    assert_drawn_from(Counter((values * 64).long().tolist()), torch.full((64,), 1 / 64, dtype=torch.float64), 64)
    for lag in (1, 2, 7):
        pairs = (values[:-lag] * 8).long() * 8 + (values[lag:] * 8).long()
        assert_drawn_from(Counter(pairs.tolist()), torch.full((64,), 1 / 64, dtype=torch.float64), 64)
        centred = values - values.mean()
        correlation = (centred[:-lag] * centred[lag:]).mean() / values.var()
        assert abs(correlation) < 4 / math.sqrt(count)


def test_streams_of_one_seed_are_independent_of_each_other() -> None:
    streams = torch.tensor([[uniform(stream_key(9, c), i) for i in range(4000)] for c in range(4)])
    assert (torch.corrcoef(streams) - torch.eye(4)).abs().max() < 4 / math.sqrt(4000)


# --- log-probabilities


def test_logprobs_are_those_of_the_raw_logits() -> None:
    logits = torch.stack([random_logits(400, seed=i) for i in range(5)])
    samplings: list[dict[str, Any]] = [
        {"num_logprobs": 3},
        {"num_logprobs": 0, "temperature": 2.0, "repetition_penalty": 1.5},
        {},
        {"num_logprobs": 20, "temperature": 0.3, "top_k": 2, "logit_bias": ((7, 100.0),)},
        {"num_logprobs": 1, "frequency_penalty": 2.0},
    ]
    rows = [make_row(i, [7], [8, 8], **sampling) for i, sampling in enumerate(samplings)]
    expected = logits.double().log_softmax(-1)
    tokens = sample(logits, rows)
    assert tokens[2].logprob is None
    assert tokens[3].token_id == 7
    for i in (0, 1, 3, 4):
        entry, count = tokens[i].logprob, samplings[i]["num_logprobs"]
        assert entry is not None
        assert entry.logprob == pytest.approx(float(expected[i, tokens[i].token_id]), abs=1e-5)
        assert len(entry.top_ids) == len(entry.top_logprobs) == count
        best = expected[i].topk(max(count, 1))
        assert entry.top_ids == best.indices.tolist()[:count]
        assert entry.top_logprobs == pytest.approx(best.values.tolist()[:count], abs=1e-5)


def test_more_alternatives_than_tokens() -> None:
    (token,) = sample(torch.tensor([[1.0, 2.0, 3.0]]), [make_row(num_logprobs=20)])
    assert token.logprob is not None
    assert token.logprob.top_ids == [2, 1, 0]


def test_prompt_logprobs() -> None:
    logits = torch.stack([random_logits(100, seed=i) for i in range(6)])
    next_ids = [5, 99, 0, 5, 17, 50]
    expected = logits.double().log_softmax(-1)
    for num_top in (0, 1, 4):
        entries = prompt_logprobs(logits, next_ids, num_top)
        assert [entry.logprob for entry in entries] == pytest.approx(
            [float(row[i]) for row, i in zip(expected, next_ids, strict=True)], abs=1e-5
        )
        assert [entry.top_ids for entry in entries] == [row.topk(4).indices.tolist()[:num_top] for row in expected]
