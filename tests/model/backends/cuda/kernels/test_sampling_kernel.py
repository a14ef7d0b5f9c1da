"""The sampling kernel against sorting, row by row."""

from __future__ import annotations

import math

import pytest
import torch

from model.backends.cuda.kernels.sampling import sample_rows as sampling
from model.backends.cuda.kernels.sampling.sample_rows import RowFilters, sample_rows


def filters(device: torch.device, **columns: list[float]) -> RowFilters:
    num_rows = len(next(iter(columns.values())))
    defaults = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "draws": 0.5}
    values = {name: columns.get(name, [default] * num_rows) for name, default in defaults.items()}
    return RowFilters(
        *(
            torch.tensor(column, dtype=torch.int32 if name == "top_k" else torch.float32, device=device)
            for name, column in values.items()
        )
    )


def expected_token(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float, draw: float
) -> tuple[int, float]:
    """The token, and how far the draw is from the next one's share; ties keep the order of the vocabulary."""
    probs = (logits.double() / temperature).softmax(-1)
    order = torch.argsort(probs, descending=True, stable=True)
    is_kept = torch.ones(len(probs), dtype=torch.bool)
    if 0 < top_k < len(probs):
        is_kept[order[top_k:]] = False
    mass = probs[is_kept].sum()
    before = (probs * is_kept)[order].cumsum(-1) - (probs * is_kept)[order]
    if top_p < 1:
        is_kept[order[before >= top_p * mass]] = False
    is_kept &= probs >= min_p * probs.max()
    cumulative = (probs * is_kept).cumsum(-1)
    target = draw * cumulative[-1]
    token = int(torch.searchsorted(cumulative, target, right=True))
    return token, float((cumulative - target).abs().min() / cumulative[-1])


CASES = [
    (1.0, 0, 1.0, 0.0),
    (0.7, 0, 0.8, 0.0),
    (1.3, 5, 1.0, 0.0),
    (1.0, 40, 0.6, 0.0),
    (1.0, 0, 1.0, 0.3),
    (2.0, 200, 0.95, 0.01),
    (1.0, 1, 1.0, 0.0),
    (5.0, 0, 0.5, 0.0),
]


@pytest.mark.parametrize(("vocab_size", "draw", "is_coarse"), [(200, 0.2, False), (700, 0.77, True)])
def test_filtered_draws(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, vocab_size: int, draw: float, is_coarse: bool
) -> None:
    """All filters in one launch, rows of one and of three parts; coarse logits make ties, at the thresholds too."""
    monkeypatch.setattr(sampling, "_PART", 256)
    rows = [(*case, draw) for case in CASES]
    logits = torch.randn(len(rows), vocab_size) * 2
    if is_coarse:
        logits = torch.round(logits * 2) / 2
    names = ("temperature", "top_k", "top_p", "min_p", "draws")
    columns = {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    ids, is_valid = sample_rows(logits.to(device).clone(), filters(device, **columns))
    assert is_valid.all()
    num_close = 0
    for row, found, case in zip(logits, ids.tolist(), rows, strict=True):
        token, distance = expected_token(row, *case)
        if distance < 1e-5:
            num_close += 1  # float32 sums may fall on the other side
        else:
            assert found == token, case
    assert num_close < len(rows) // 2


@pytest.mark.parametrize("draw", [0.0, 0.9999999])
def test_the_ends_of_what_is_kept(device: torch.device, monkeypatch: pytest.MonkeyPatch, draw: float) -> None:
    """The first and the last kept token, in the first and the last part; told which filters there are, or not."""
    monkeypatch.setattr(sampling, "_PART", 128)
    logits = torch.full((1, 300), -9.0)
    logits[0, [3, 150, 299]] = torch.tensor([2.0, 2.0, 2.0])
    for given in ({}, {"has_top_k": False}):
        ids, _ = sample_rows(logits.clone().to(device), filters(device, top_p=[0.9], draws=[draw]), **given)
        assert ids.tolist() == [3 if draw == 0 else 299]
    ids, _ = sample_rows(logits.clone().to(device), filters(device, top_k=[2], draws=[draw]), has_top_p=False)
    assert ids.tolist() == [3 if draw == 0 else 150]


def test_greedy_takes_the_first_of_the_largest(device: torch.device) -> None:
    logits = torch.zeros(3, 9000)
    logits[0, [8000, 20]] = 5.0
    logits[1, 8999] = 1.0
    logits[2, :] = -math.inf
    logits[2, 17] = -1e30
    ids, is_valid = sample_rows(logits.to(device), filters(device, temperature=[0.0] * 3))
    assert ids.tolist() == [20, 8999, 17]
    assert is_valid.all()


def test_rows_that_are_not_numbers(device: torch.device) -> None:
    logits = torch.randn(4, 300)
    logits[0, 9] = math.nan
    logits[1, 9] = math.inf
    logits[2, :] = -math.inf
    ids, is_valid = sample_rows(logits.to(device), filters(device, temperature=[1.0, 0.0, 1.0, 1.0], top_p=[0.5] * 4))
    assert is_valid.tolist() == [False, False, False, True]
    assert ((ids >= 0) & (ids < 300)).all()


def test_masked_tokens_are_never_drawn(device: torch.device) -> None:
    logits = torch.full((2, 400), -math.inf)
    logits[:, [3, 399]] = 0.0
    ids, _ = sample_rows(logits.to(device), filters(device, draws=[0.0, 0.99999999], top_k=[50, 0], top_p=[0.99, 1.0]))
    assert ids.tolist() == [3, 399]


def test_tiny_temperatures(device: torch.device) -> None:
    logits = torch.randn(1, 300) * 50
    best = int(logits.argmax())
    ids, is_valid = sample_rows(logits.to(device), filters(device, temperature=[1e-38], draws=[0.9]))
    assert (ids.tolist(), is_valid.tolist()) == ([best], [True])


def test_rows_of_a_wider_buffer(device: torch.device) -> None:
    wide = torch.randn(3, 500, device=device)
    wide[:, 300:] = 1e9
    ids, _ = sample_rows(wide[:, :300], filters(device, temperature=[0.0] * 3))
    assert ids.tolist() == wide[:, :300].argmax(-1).tolist()
