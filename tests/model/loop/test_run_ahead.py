"""Steps launched before the tokens of the one before are here: the same replies, and a consistent loop throughout."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from model.contract.messages import AddRequest
from model.contract.sampling_params import SamplingParams
from model.scheduling.sequence import ScheduledBatch
from tests.support.engine_driver import Driver, make_driver
from tests.support.staggered_requests import facts, random_requests, run_staggered

GRAMMAR = 'start: "a" "b"+'


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_blocks", [400, 28], ids=["roomy", "tight"])
def test_replies_are_the_same(tiny_checkpoint: Path, seed: int, num_blocks: int) -> None:
    """Stops, limits, choices, scores, penalties, preemptions; log-probabilities may differ in their last digits."""
    requests = random_requests(random.Random(seed), 12, 60)
    requests[2:2] = [greedy(1000 + i, 50) for i in range(4)]  # together they outgrow the tight pool
    settings: dict[str, Any] = {
        "num_blocks": num_blocks, "block_size": 4, "max_model_len": 110, "max_num_seqs": 8, "max_num_batched_tokens": 24
    }  # fmt: skip
    if seed == 2:
        settings["attention_window"] = (12, 20)
    expected = run_staggered(make_driver(tiny_checkpoint, **settings), requests, seed)
    driver = make_driver(tiny_checkpoint, **settings, run_ahead=True)
    found = run_staggered(driver, requests, seed)
    assert {seq_id: facts(reply) for seq_id, reply in found.items()} == {
        seq_id: facts(reply) for seq_id, reply in expected.items()
    }
    for seq_id, reply in expected.items():
        for a, b in zip(reply.logprobs, found[seq_id].logprobs, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
        if reply.prompt_logprobs is not None:
            assert len(found[seq_id].prompt_logprobs or []) == len(reply.prompt_logprobs)
    if num_blocks == 28 and seed != 2:  # what windows have passed leaves room for all
        assert driver.stats.num_preemptions_total > 0


def greedy(seq_id: int, max_tokens: int, **sampling: Any) -> AddRequest:
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, **sampling)
    return AddRequest(seq_ids=(seq_id,), request_id=str(seq_id), prompt_ids=[9, 3, 200, 41], sampling=params)


def count_launches(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ids of the sequences of each launched step, one list for all."""
    launched: list[int] = []
    original = driver.engine._runner.launch

    def launch(batch: ScheduledBatch) -> Any:
        launched.extend(entry.seq_id for entry in batch)
        return original(batch)

    monkeypatch.setattr(driver.engine._runner, "launch", launch)
    return launched


def test_a_known_end_wastes_no_step(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = make_driver(tiny_checkpoint, run_ahead=True)
    launched = count_launches(driver, monkeypatch)
    driver.run([greedy(0, 5), greedy(1, 9)])
    assert (launched.count(0), launched.count(1)) == (5, 9)


def test_an_unforeseen_end_wastes_one_slot(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_driver(tiny_checkpoint).run([greedy(0, 12)])[0].token_ids
    end = next(i for i in range(3, 12) if whole[i] not in whole[:i])
    driver = make_driver(tiny_checkpoint, run_ahead=True)
    launched = count_launches(driver, monkeypatch)
    reply = driver.run([greedy(0, 12, stop_token_ids=(whole[end],))])[0]
    assert reply.token_ids == whole[: end + 1]
    assert len(launched) == end + 2


def test_the_next_step_is_launched_before_tokens_are_read(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = make_driver(tiny_checkpoint, run_ahead=True)
    runner = driver.engine._runner
    events: list[str] = []
    launch, copy = runner.launch, runner.worker.backend.copy_to_host

    def launch_noted(batch: ScheduledBatch) -> Any:
        events.append("launch")
        return launch(batch)

    def copy_noted(tensors: list[torch.Tensor]) -> Any:
        wait = copy(tensors)

        def wait_noted() -> list[torch.Tensor]:
            events.append("read")
            return wait()

        return wait_noted

    monkeypatch.setattr(runner, "launch", launch_noted)
    monkeypatch.setattr(runner.worker.backend, "copy_to_host", copy_noted)
    driver.run([greedy(0, 4)])
    assert events == ["launch", "launch", "read", "launch", "read", "launch", "read", "read"]


def test_what_fails_while_a_later_step_is_under_way_costs_that_one_nothing(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third step reads a token of the second, which no failure of the first may take away."""
    expected = make_driver(tiny_checkpoint).run([greedy(1, 8)])[1].token_ids
    driver = make_driver(tiny_checkpoint, run_ahead=True)
    runner = driver.engine._runner
    launch, copy = runner.launch, runner.worker.backend.copy_to_host
    num_copies, failures = 0, []

    def fail() -> list[torch.Tensor]:
        raise ValueError("the first step failed")

    def copy_or_fail(tensors: list[torch.Tensor]) -> Any:
        nonlocal num_copies
        num_copies += 1
        return fail if num_copies == 1 else copy(tensors)

    def launch_noted(batch: ScheduledBatch) -> Any:
        try:
            return launch(batch)
        except Exception as error:
            failures.append(error)
            raise

    monkeypatch.setattr(runner, "launch", launch_noted)
    monkeypatch.setattr(runner.worker.backend, "copy_to_host", copy_or_fail)
    driver.add([greedy(0, 8)])
    driver.step()
    driver.add([greedy(1, 8)])
    replies = driver.finish()
    assert (replies[0].finish_reason, replies[1].token_ids) == ("error", expected)
    assert not failures


def test_aborted_between_launch_and_tokens(tiny_checkpoint: Path) -> None:
    driver = make_driver(tiny_checkpoint, run_ahead=True)
    expected = make_driver(tiny_checkpoint).run([greedy(1, 8)])[1].token_ids
    driver.add([greedy(0, 20), greedy(1, 8)])
    driver.step()
    driver.step()
    driver.engine.abort([0])
    driver.check_integrity()
    before = list(driver.replies.pop(0).token_ids)
    assert driver.finish()[1].token_ids == expected
    assert len(before) <= 2


def test_everything_aborted_leaves_no_work(tiny_checkpoint: Path) -> None:
    driver = make_driver(tiny_checkpoint, run_ahead=True)
    driver.add([greedy(0, 20)])
    driver.step()
    driver.engine.abort([0])
    driver.replies.clear()
    driver.finish()
    assert not driver.engine.has_work()


def test_a_grammar_waits_for_each_token_and_others_do_not(
    demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it allows next depends on the token, so its sequence is left out of the step that is launched meanwhile."""
    requests = [
        AddRequest(
            seq_ids=(number,),
            request_id=str(number),
            prompt_ids=[40 + number],
            sampling=SamplingParams(max_tokens=6 if grammar else 12, temperature=0.0, grammar=grammar),
        )
        for number, grammar in enumerate([GRAMMAR, None])
    ]
    expected = make_driver(demo_checkpoint).run(requests)
    driver = make_driver(demo_checkpoint, run_ahead=True)
    steps: list[tuple[set[int], bool]] = []  # who is in a step, and whether another is in flight
    original = driver.engine._runner.launch

    def launch(batch: ScheduledBatch) -> Any:
        steps.append(({entry.seq_id for entry in batch}, driver.engine._steps.in_flight is not None))
        return original(batch)

    monkeypatch.setattr(driver.engine._runner, "launch", launch)
    found = driver.run(requests)
    assert {i: facts(r) for i, r in found.items()} == {i: facts(r) for i, r in expected.items()}
    together = steps[next(i for i, (seqs, _) in enumerate(steps) if 0 in seqs) :][:11]
    for (seqs, _), (following, is_ahead) in itertools.pairwise(together):
        assert is_ahead, "nobody waits for the grammar"
        assert not (0 in seqs and 0 in following)
        assert 1 in following


def test_grammars_alone_wait(demo_checkpoint: Path) -> None:
    """With nobody else, each step is read before the next one is launched."""
    requests = [
        AddRequest(
            seq_ids=(i,), request_id=str(i), prompt_ids=[40 + i],
            sampling=SamplingParams(max_tokens=6, temperature=0.0, grammar=GRAMMAR),
        )
        for i in range(3)
    ]  # fmt: skip
    expected = make_driver(demo_checkpoint).run(requests)
    driver = make_driver(demo_checkpoint, run_ahead=True)
    found = run_staggered(driver, requests, 0)
    assert {i: facts(r) for i, r in found.items()} == {i: facts(r) for i, r in expected.items()}


# --- out of memory


class Exhausted:
    """A launch that has no memory for steps of more than so many tokens, or sequences."""

    def __init__(self, driver: Driver, monkeypatch: pytest.MonkeyPatch, *, max_tokens: int = 10**9, max_seqs: int = 99):
        self.num_failures = 0
        original = driver.engine._runner.launch

        def launch(batch: ScheduledBatch) -> Any:
            if batch.num_tokens > max_tokens or len(batch) > max_seqs:
                self.num_failures += 1
                raise torch.OutOfMemoryError("no memory")
            return original(batch)

        monkeypatch.setattr(driver.engine._runner, "launch", launch)


@pytest.mark.parametrize("run_ahead", [False, True])
@pytest.mark.parametrize("limits", [{"max_tokens": 9}, {"max_seqs": 2}, {"max_tokens": 3, "max_seqs": 2}])
def test_steps_that_do_not_fit_become_smaller(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, run_ahead: bool, limits: dict[str, int]
) -> None:
    requests = random_requests(random.Random(5), 8, 60)
    expected = make_driver(tiny_checkpoint).run(requests)
    driver = make_driver(tiny_checkpoint, run_ahead=run_ahead)
    exhausted = Exhausted(driver, monkeypatch, **limits)
    found = driver.run(requests)
    assert 0 < exhausted.num_failures < 12, "it learns"
    assert {i: facts(r) for i, r in found.items()} == {i: facts(r) for i, r in expected.items()}


@pytest.mark.parametrize("run_ahead", [False, True])
def test_a_sequence_that_does_not_fit_alone_is_refused(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, run_ahead: bool
) -> None:
    driver = make_driver(tiny_checkpoint, run_ahead=run_ahead)
    exhausted = Exhausted(driver, monkeypatch, max_tokens=0)
    replies = driver.run([greedy(0, 5), greedy(1, 5)])
    assert [reply.finish_reason for reply in replies.values()] == ["abort", "abort"]
    assert "no memory left" in (replies[0].error or "")
    assert exhausted.num_failures >= 2
