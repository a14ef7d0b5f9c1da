"""Guesses change the number of steps, never a reply."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.contract.messages import AddRequest
from model.contract.sampling_params import SamplingParams
from model.distributed.step import RankStep
from model.execution.launched_step import accept
from model.execution.row_costs import MAX_GUESSED_ROWS, measure_row_costs
from model.execution.worker import Worker
from model.sampling.sampler import SampledToken
from model.scheduling.drafting import Drafter, TextIndex
from model.scheduling.sequence import Sequence
from model.scheduling.speculation import MAX_DRAFT_TOKENS, RowCosts, Speculator
from tests.support.engine_driver import Driver, make_driver
from tests.support.speculative_requests import FREE, REQUEST, SETTINGS, facts, run_requests

STEEP = RowCosts((1, 8), (1.0, 8.0), 0.0)
NOTHING: Mapping[int, list[int]] = {}


def speculating(folder: Path, **settings: Any) -> Driver:
    """An engine that tries every guess it has, whatever this machine would gain by it."""
    driver = make_driver(folder, **settings)
    assert driver.engine._speculator is not None
    driver.engine._speculator._costs = FREE
    return driver


@pytest.fixture(scope="module")
def pair(tiny_checkpoint: Path) -> tuple[Driver, Driver]:
    return make_driver(tiny_checkpoint, **SETTINGS, speculation="off"), speculating(tiny_checkpoint, **SETTINGS)


@given(requests=st.lists(REQUEST, min_size=1, max_size=7))
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
def test_replies_are_those_without(pair: tuple[Driver, Driver], requests: list[dict[str, Any]]) -> None:
    """Any sampling, forms, choices, ends, preemptions, chunks, cached starts, and who leaves meanwhile.

    In float32 the library's products of several rows may differ in their last digits from those of one.
    """
    plain, guessing = pair
    expected = run_requests(plain, requests)
    found = run_requests(guessing, requests, expected)
    assert {seq_id: facts(reply) for seq_id, reply in found.items()} == {
        seq_id: facts(reply) for seq_id, reply in expected.items()
    }
    for seq_id, reply in expected.items():
        for a, b in zip(reply.logprobs, found[seq_id].logprobs, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
            assert a.top_ids == b.top_ids


def test_guesses_were_tried_and_some_were_right(pair: tuple[Driver, Driver]) -> None:
    plain, guessing = pair
    sampling = {"max_tokens": 40, "temperature": 0.0, "ignore_eos": True}
    requests = [{"sampling": sampling, "prompt": [[97, 98, 99, 5]] * 4, "n": 1, "is_expected": True, "wait": 0}]
    run_requests(guessing, requests, run_requests(plain, requests))
    stats = guessing.stats
    assert 0 < stats.num_accepted_tokens_total < stats.num_draft_tokens_total
    assert stats.num_drafts_total > 0
    assert plain.stats.num_drafts_total == 0


def test_a_guess_stands_as_far_as_it_was_sampled() -> None:
    tokens = [SampledToken(token_id, None, True) for token_id in (5, 6, 7, 8)]
    for draft_ids, num_standing in (([5, 6, 7], 4), ([5, 9, 7], 2), ([9, 6, 7], 1)):
        assert accept(tokens, draft_ids) == tokens[:num_standing]
    tokens[2] = tokens[2]._replace(is_valid=False)
    assert accept(tokens, [5, 6, 7]) == tokens[:2]


def drafter(prompt: list[int], prediction: list[int] | None = None) -> tuple[list[int], Drafter]:
    token_ids = prompt[:]
    return token_ids, Drafter(token_ids, TextIndex(prompt), None if prediction is None else TextIndex(prediction))


def test_the_longest_equal_run_is_followed() -> None:
    _, guesses = drafter([1, 2, 3, 4, 50, 60, 9, 2, 3, 4, 70, 80, 1, 2, 3, 4])
    assert guesses.draft(2, []).token_ids == [50, 60]


def test_what_repeats_itself_goes_on_as_long_as_is_asked() -> None:
    token_ids, guesses = drafter([8, 8, 9])
    for token_id in [5, 6, 7, 5, 6, 7]:
        token_ids.append(token_id)
        guesses.draft(1, [])
    assert guesses.draft(8, []).token_ids == [5, 6, 7, 5, 6, 7, 5, 6]


def test_one_changed_token_does_not_lose_the_place() -> None:
    text = list(range(100, 120))
    token_ids, guesses = drafter([*text, 1, 2, 3, *text[:8]])
    assert guesses.draft(3, []).token_ids == [108, 109, 110]
    token_ids.append(55)
    assert guesses.draft(2, []).token_ids == [109, 110]


def test_what_the_client_expects_comes_first_and_is_found_again() -> None:
    expected = list(range(100, 120))
    token_ids, guesses = drafter([1, 2, 3], expected)
    assert guesses.draft(3, []).token_ids == [100, 101, 102]
    token_ids += [7, 7, 7, 110, 111, 112]
    assert guesses.draft(3, []).token_ids == [113, 114, 115]


def test_nothing_is_guessed_where_nothing_is_alike() -> None:
    token_ids, guesses = drafter(list(range(50)))
    assert guesses.draft(8, []).token_ids == []
    token_ids += [1, 99]
    assert guesses.draft(8, []).token_ids == []


def test_a_text_that_is_never_copied_is_believed_less_and_less() -> None:
    token_ids, guesses = drafter([1, 2, 3, 4] * 10)
    first = guesses.draft(1, []).chances[0]
    for number in range(20):
        token_ids += [1, 2, 3, 1000 + number]
        chances = guesses.draft(1, []).chances
    token_ids += [1, 2, 3]
    assert guesses.draft(1, []).chances[0] < first / 2 or not chances


def plan(
    costs: RowCosts, texts: list[list[int]], max_rows: int = 100, forced: Mapping[int, list[int]] = NOTHING
) -> list[int]:
    """How many tokens are guessed for each of some sequences."""
    speculator = Speculator(costs, 1000)
    seqs = [Sequence(i, "r", text, SamplingParams(max_tokens=99, eos_token_ids=(7,))) for i, text in enumerate(texts)]
    for seq in seqs:
        speculator.start([seq], seq.token_ids[:], [])
    drafts = speculator.draft(dict.fromkeys(seqs, 20), max_rows, forced)
    return [len(drafts.get(seq.seq_id, [])) for seq in seqs]


REPEATING, STRANGE = [1, 2, 3, 4, 5] * 8, list(range(40))


def test_as_much_is_guessed_as_is_likely_to_pay() -> None:
    assert plan(FREE, [REPEATING, STRANGE]) == [MAX_DRAFT_TOKENS, 0]
    assert plan(STEEP, [REPEATING, STRANGE]) == [0, 0]
    (num_guessed,) = plan(RowCosts((1, 4, 8), (1.0, 1.0, 2.0), 0.0), [REPEATING])
    assert num_guessed == 3
    assert plan(RowCosts((1, 8), (1.0, 1.0), 1.0), [REPEATING]) == [0], "each row reads a long context again"


def test_guesses_stop_under_load() -> None:
    assert plan(FREE, [REPEATING] * 40) == [0] * 40
    assert sum(plan(FREE, [REPEATING] * 14)) == MAX_GUESSED_ROWS - 14
    assert sum(plan(FREE, [REPEATING] * 3, max_rows=8)) == 5


def test_what_a_grammar_forces_is_guessed_first() -> None:
    assert plan(FREE, [STRANGE], forced={0: [11, 12, 13]}) == [3]


def test_guesses_end_before_an_ending_and_before_what_does_not_exist() -> None:
    assert plan(FREE, [[1, 2, 3, 4, 7, 5, 1, 2, 3]]) == [1]
    assert plan(FREE, [[1, 2, 3, 4, 5000, 5, 1, 2, 3]]) == [1]


def test_no_guess_is_made_beyond_the_last_token(tiny_checkpoint: Path) -> None:
    """Nor where steps overlap."""
    request = AddRequest(
        seq_ids=(0,), request_id="r", prompt_ids=[4, 5, 6] * 9, sampling=SamplingParams(max_tokens=3, temperature=0.0)
    )
    assert len(speculating(tiny_checkpoint).run([request])[0].token_ids) == 3
    assert make_driver(tiny_checkpoint, run_ahead=True).engine._speculator is None


def test_row_costs_are_measured_as_far_as_rows_are_nearly_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that moves as steps run; one of a single row is held up both times."""
    now = 0.0
    took = {1: 9.0, 2: 2.0, 4: 2.5, 8: 8.0, 16: 20.0}
    seen: list[tuple[int, int]] = []

    def run(num_rows: int, context_len: int) -> None:
        nonlocal now
        seen.append((num_rows, context_len))
        now += took[num_rows] + context_len / 100

    monkeypatch.setattr("model.execution.row_costs.time.perf_counter", lambda: now)
    costs = measure_row_costs(run, 301)
    assert costs.num_rows == (1, 2, 4, 8)
    assert costs.seconds == (2.0, 2.0, 2.5, 8.0)
    assert max(seen) == (8, 0)
    assert (1, 300) in seen
    assert costs.step_s(3, 0) == 2.25
    assert costs.step_s(1, 100) == 2.0 + 100 * costs.key_s


def test_row_costs_are_measured_within_the_context(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU has tables of so many positions, and what lies behind them is not its own."""
    ends: list[int] = []
    forward = Worker.forward

    def watched(self: Worker, step: RankStep) -> torch.Tensor:
        ends.extend(span.context_len for span in step.spans)
        return forward(self, step)

    monkeypatch.setattr(Worker, "forward", watched)
    monkeypatch.setattr("model.execution.row_costs._TOO_LONG", float("inf"))
    make_driver(tiny_checkpoint, max_model_len=MAX_GUESSED_ROWS // 2)
    assert len(ends) > MAX_GUESSED_ROWS
    assert max(ends) == MAX_GUESSED_ROWS // 2
