"""What breaks in a step: one sequence's fault is its own, want of memory slows the loop, a dead device ends it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from model import step_guard
from model.messages import AddRequest
from model.model_runner import ModelRunner, StepResult
from model.sampling_params import SamplingParams
from model.sequence import ScheduledBatch
from model.step_guard import OUT_OF_MEMORY, STEP_FAILED
from tests.support.engine_driver import Driver, make_driver

Execute = Callable[[ScheduledBatch], StepResult]


def request(seq_id: int, prompt: list[int], **sampling: Any) -> AddRequest:
    params = SamplingParams(**{"max_tokens": 10, "temperature": 1.0, "seed": seq_id, **sampling})
    return AddRequest(seq_ids=(seq_id,), request_id=f"r{seq_id}", prompt_ids=prompt, sampling=params)


def requests(count: int, **sampling: Any) -> list[AddRequest]:
    return [request(i, [i + 3, 7, 9] * 4, **sampling) for i in range(count)]


@pytest.fixture(scope="module")
def driver(tiny_checkpoint: Path) -> Driver:
    return make_driver(tiny_checkpoint, max_num_batched_tokens=64)


def break_steps(driver: Driver, monkeypatch: pytest.MonkeyPatch, fault: Callable[[ScheduledBatch], None]) -> None:
    """Lets `fault` look at every batch after it was computed and sampled, which leaves the most behind."""
    runner: ModelRunner = driver.engine._runner
    execute = runner.execute

    def broken(batch: ScheduledBatch) -> StepResult:
        result = execute(batch)
        fault(batch)
        return result

    monkeypatch.setattr(driver.engine._guard, "_execute", broken)


def test_one_sequence_that_breaks_steps_ends_alone(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others' replies are what they would have been, penalties (which keep a history) included."""
    penalties = {"repetition_penalty": 1.3, "frequency_penalty": 0.5}
    expected = driver.run(requests(9, **penalties))

    def fault(batch: ScheduledBatch) -> None:
        if any(entry.seq.seq_id == 5 and entry.seq.num_output_tokens >= 3 for entry in batch):
            raise ValueError("an unlucky number")

    break_steps(driver, monkeypatch, fault)
    replies = driver.run(requests(9, **penalties))
    assert replies[5].finish_reason == "error"
    assert replies[5].error == STEP_FAILED
    assert replies[5].token_ids == expected[5].token_ids[:3]
    for seq_id in {*range(9)} - {5}:
        assert replies[seq_id].token_ids == expected[seq_id].token_ids
        assert replies[seq_id].finish_reason == expected[seq_id].finish_reason


def test_a_sequence_alone_that_breaks_steps(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(batch: ScheduledBatch) -> None:
        if batch.entries[0].seq.seq_id == 0:
            raise ValueError

    break_steps(driver, monkeypatch, fault)
    for _ in range(4):  # more than may fail one after another, with good ones between them
        assert driver.run([request(0, [4])])[0].finish_reason == "error"
        assert driver.run([request(1, [4])])[1].finish_reason == "length"


@pytest.mark.parametrize("count", [1, 4])
def test_steps_that_all_fail_end_the_engine(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    driver = make_driver(tiny_checkpoint)

    def fault(batch: ScheduledBatch) -> None:
        raise ValueError("broken for everybody")

    break_steps(driver, monkeypatch, fault)
    with pytest.raises(ValueError, match="everybody"):
        for _ in range(3):
            driver.run(requests(count))


def test_a_fault_of_the_device_ends_the_engine(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = make_driver(tiny_checkpoint)
    num_tries = 0

    def fault(batch: ScheduledBatch) -> None:
        nonlocal num_tries
        num_tries += 1
        raise torch.AcceleratorError("an illegal memory access was encountered", 700)

    break_steps(driver, monkeypatch, fault)
    with pytest.raises(torch.AcceleratorError):
        driver.run(requests(4))
    assert num_tries == 1, "a broken device is not asked again"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_out_of_memory_makes_steps_smaller(driver: Driver, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(step_guard, "_STEPS_UNTIL_REGROWTH", 16)
    expected = driver.run(requests(9, repetition_penalty=1.2))
    largest = 0

    def fault(batch: ScheduledBatch) -> None:
        nonlocal largest
        if batch.num_tokens > 5:
            raise error
        largest = max(largest, batch.num_tokens)

    with monkeypatch.context() as patch:
        break_steps(driver, patch, fault)
        replies = driver.run(requests(9, repetition_penalty=1.2))
    assert {i: reply.token_ids for i, reply in replies.items()} == {i: r.token_ids for i, r in expected.items()}
    assert 1 < largest <= 5
    driver.run(requests(4, max_tokens=100, ignore_eos=True))
    assert driver.engine._guard.token_budget == 64, "what was a moment's want is forgotten"


def test_a_request_that_never_fits_is_given_up(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(batch: ScheduledBatch) -> None:
        if any(entry.seq.seq_id == 3 for entry in batch):
            raise MemoryError

    break_steps(driver, monkeypatch, fault)
    replies = driver.run(requests(5))
    given_up = replies.pop(3)
    assert (given_up.finish_reason, given_up.error) == ("abort", OUT_OF_MEMORY)
    assert {reply.finish_reason for reply in replies.values()} <= {"length", "stop"}


def test_ids_that_do_not_exist_never_reach_the_device(driver: Driver) -> None:
    for ids in ([5, 300], [-1]):
        reply = driver.run([request(0, ids)])[0]
        assert reply.finish_reason == "error"
        assert "from 0 to 299" in (reply.error or "")


def test_a_grammar_that_cannot_be_started_ends_its_request_only(driver: Driver) -> None:
    class Matcher:
        def deep_copy(self) -> Matcher:
            raise RuntimeError("no copy")

    compiled: Future[Any] = Future()
    compiled.set_result(Matcher())
    driver.engine._grammar_compiler._compiled["bad"] = compiled
    replies = driver.run([request(0, [4], grammar="bad"), request(1, [4])])
    assert replies[0].error == STEP_FAILED
    assert replies[1].finish_reason == "length"


def test_a_grammar_that_fails_in_a_step_ends_its_sequence_only(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        """What a failure inside the library looks like."""

    class Matcher:
        num_tokens = 0

        def deep_copy(self) -> Matcher:
            return self

        def is_error(self) -> bool:
            return False

        def compute_bitmask(self) -> bytes:
            raise Panic("in the mask")

    plain = driver.run([request(1, [4, 5])])[1]
    driver.add([request(0, [4]), request(1, [4, 5])])
    driver.engine._runner.grammars._matchers[0] = Matcher()  # type: ignore[assignment]
    replies = driver.finish()
    assert replies[0].finish_reason == "error"
    assert replies[1].token_ids == plain.token_ids
