"""What breaks in a step: one sequence's fault is its own, want of memory slows the loop, a dead device ends it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from model.contract import grammar_compiler
from model.contract.grammar_compiler import GrammarAccount
from model.contract.messages import AddRequest
from model.contract.sampling_params import SamplingParams
from model.execution.launched_step import ModelRunnerOutput
from model.execution.model_runner import ModelRunner
from model.loop import step_guard
from model.loop.step_guard import OUT_OF_MEMORY, STEP_FAILED
from model.sampling import grammar_states as grammar
from model.sampling import grammar_walk
from model.sampling.compiled_grammars import CompiledGrammar
from model.sampling.grammar_states import GrammarStates
from model.sampling.grammar_walk import STUCK, TOO_COMPLEX, TOO_SLOW
from model.scheduling.sequence import ScheduledBatch
from tests.support.engine_driver import Driver, make_driver

Execute = Callable[[ScheduledBatch], ModelRunnerOutput]


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

    def broken(batch: ScheduledBatch) -> ModelRunnerOutput:
        result = execute(batch)
        fault(batch)
        return result

    monkeypatch.setattr(driver.engine._steps.guard, "_execute", broken)


def test_one_sequence_that_breaks_steps_ends_alone(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others' replies are what they would have been, penalties (which keep a history) included."""
    penalties = {"repetition_penalty": 1.3, "frequency_penalty": 0.5}
    expected = driver.run(requests(9, **penalties))

    def fault(batch: ScheduledBatch) -> None:
        if any(e.seq_id == 5 and len(e.token_ids) - e.num_prompt_tokens >= 3 for e in batch):
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
        if batch.entries[0].seq_id == 0:
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
    assert driver.engine._steps.guard.token_budget == 64, "what was a moment's want is forgotten"


def test_a_request_that_never_fits_is_given_up(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(batch: ScheduledBatch) -> None:
        if any(entry.seq_id == 3 for entry in batch):
            raise MemoryError

    break_steps(driver, monkeypatch, fault)
    replies = driver.run(requests(5))
    given_up = replies.pop(3)
    assert (given_up.finish_reason, given_up.error) == ("abort", OUT_OF_MEMORY)
    assert {reply.finish_reason for reply in replies.values()} <= {"length", "stop"}


@pytest.mark.parametrize("limit", [1, 6])
def test_memory_that_runs_out_while_a_culprit_is_looked_for(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Steps become smaller; who is to blame ends, the others get what they would have got."""
    expected = driver.run(requests(9, repetition_penalty=1.2))
    is_full = False

    def fault(batch: ScheduledBatch) -> None:
        nonlocal is_full
        if any(entry.seq_id == 5 for entry in batch):
            is_full = len(batch) > 1  # from here on
            raise ValueError("an unlucky number")
        if is_full and batch.num_tokens > limit:
            raise MemoryError

    break_steps(driver, monkeypatch, fault)
    replies = driver.run(requests(9, repetition_penalty=1.2))
    assert (replies[5].finish_reason, replies[5].error) == ("error", STEP_FAILED)
    for seq_id in {*range(9)} - {5}:
        assert replies[seq_id] == expected[seq_id]


def test_ids_that_do_not_exist_never_reach_the_device(driver: Driver) -> None:
    for ids in ([5, 300], [-1]):
        reply = driver.run([request(0, ids)])[0]
        assert reply.finish_reason == "error"
        assert "from 0 to 299" in (reply.error or "")


class Panic(BaseException):
    """What a failure inside the library looks like."""


class SomeMatcher:
    """Stands in for a library that allows every token and takes its time, or fails."""

    def __init__(self, *, fails_in: str = "", takes_s: float = 0.0) -> None:
        self.fails_in = fails_in
        self.takes_s = takes_s
        self.spent_s = 0.0

    def _work(self, where: str) -> None:
        if self.fails_in == where:
            raise Panic(where)

    def deep_copy(self) -> SomeMatcher:
        self._work("copy")
        return self

    def consume_token(self, token_id: int) -> bool:
        self._work("token")
        return True

    def is_stopped(self) -> bool:
        return False

    def is_error(self) -> bool:
        return self.fails_in == "state"

    def get_error(self) -> str:
        return "too many items"

    def compute_bitmask(self) -> bytes:
        self._work("mask")
        self.spent_s += self.takes_s
        return (b"\0" if self.fails_in == "nothing left" else b"\xff") * 64


def use_matcher(driver: Driver, name: str, matcher: SomeMatcher) -> None:
    compiled: Future[Any] = Future()
    anything = driver.engine._runner.grammars._anything
    compiled.set_result(CompiledGrammar(matcher, anything))  # type: ignore[arg-type]
    driver.engine._grammars._compiler._compiled[name] = compiled


@pytest.mark.parametrize("where", ["copy", "token", "mask", "state", "nothing left"])
def test_a_grammar_that_fails_ends_its_sequence_only(driver: Driver, where: str) -> None:
    plain = driver.run([request(1, [4, 5])])[1]
    use_matcher(driver, "bad", SomeMatcher(fails_in=where))
    replies = driver.run([request(0, [4], grammar="bad"), request(1, [4, 5])])
    message = STUCK if where == "nothing left" else TOO_COMPLEX
    assert (replies[0].finish_reason, replies[0].error) == ("invalid", message)
    assert replies[1].token_ids == plain.token_ids


def test_a_grammar_that_never_answers_keeps_nobody_waiting(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is not known what may follow a token, the others go on; the sequence goes on when it is."""
    answers = threading.Event()
    matcher = SomeMatcher()
    monkeypatch.setattr(matcher, "consume_token", lambda token_id: answers.wait(60))
    use_matcher(driver, "late", matcher)
    driver.add([request(0, [4], grammar="late"), request(1, [4, 5])])
    while driver.replies[1].finish_reason is None:
        driver.step()
    assert len(driver.replies[0].token_ids) == 1
    driver.step()
    assert driver.engine.waiting_s() is not None
    answers.set()
    assert len(driver.finish()[0].token_ids) == 10


def test_a_reply_completed_by_its_last_token_says_so(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """However late it is known; else the finish reason would depend on the machine."""
    monkeypatch.setattr(grammar, "PATIENCE_S", 0.0)
    matcher = SomeMatcher()
    taken: list[int] = []

    def consume(token_id: int) -> bool:
        taken.append(token_id)
        threading.Event().wait(0.02)
        return True

    monkeypatch.setattr(matcher, "consume_token", consume)
    monkeypatch.setattr(matcher, "is_stopped", lambda: len(taken) == 10)
    use_matcher(driver, "late", matcher)
    reply = driver.run([request(0, [4], grammar="late")])[0]
    assert (len(reply.token_ids), reply.finish_reason) == (10, "stop")


def test_a_grammar_that_takes_long_is_left_behind_and_ended(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Choices share an account; when it is empty they end with an error that says so, and others never waited."""
    monkeypatch.setattr(grammar_compiler, "ACCOUNT_S", 0.2)
    plain = driver.run([request(9, [4, 5], max_tokens=40)])[9]
    matcher = SomeMatcher(takes_s=0.02)
    monkeypatch.setattr(grammar_walk.time, "thread_time", lambda: matcher.spent_s)  # type: ignore[attr-defined]
    monkeypatch.setattr(driver.engine._runner.grammars, "_executor", ThreadPoolExecutor(1))
    use_matcher(driver, "slow", matcher)
    sampling = SamplingParams(max_tokens=100, temperature=1.0, grammar="slow")
    slow = AddRequest(seq_ids=(0, 1, 2), request_id="slow", prompt_ids=[4], sampling=sampling)
    replies = driver.run([slow, request(9, [4, 5], max_tokens=40)])
    assert {(replies[i].finish_reason, replies[i].error) for i in range(3)} == {("invalid", TOO_SLOW)}
    assert sum(len(replies[i].token_ids) for i in range(3)) < 40  # 13 from the account, and what each adds
    assert replies[9].token_ids == plain.token_ids


def test_who_has_used_least_comes_first() -> None:
    order: list[int] = []
    states = GrammarStates(300)
    first = threading.Event()

    class Noting(SomeMatcher):
        def deep_copy(self) -> Noting:
            return Noting()

        def consume_token(self, token_id: int) -> bool:
            order.append(token_id)
            return first.wait(60)

    executor = states._executor = ThreadPoolExecutor(1)
    spent = {0: 0.0, 1: 3.0, 2: 0.5, 3: 1.0, 4: 0.1}
    for seq_id, seconds in spent.items():
        account = GrammarAccount()
        account.pay(seconds)
        states.start(seq_id, CompiledGrammar(Noting(), states._anything), account)  # type: ignore[arg-type]
    for seq_id in spent:
        states.advance([(seq_id, [seq_id])])
    first.set()
    executor.shutdown()
    assert order == [0, 4, 2, 3, 1]
