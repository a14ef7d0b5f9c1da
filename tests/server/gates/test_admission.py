"""Which requests may wait, which are refused, and the Retry-After of those."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from model.contract.errors import EngineUnavailableError
from server.gates.admission import Admission, StartRate
from server.gates.callers import Caller, WaitingLine
from server.gates.rate_limits import RateLimiter
from server.wire.errors import ApiError

ONE, OTHER = Caller("one"), Caller("other")


class FakeEngine:
    """The part of an engine client that admission uses."""

    is_ready = True

    def __init__(self) -> None:
        self.waiting = WaitingLine()

    def on_start(self, listener: Callable[[int], None]) -> None:
        self.started = listener

    def require_ready(self) -> None:
        if not self.is_ready:
            raise EngineUnavailableError("not now")


class FakeMetrics:
    """Counts refusals."""

    def __init__(self) -> None:
        self.rejected: list[str] = []

    def count_rejected(self, code: str) -> None:
        self.rejected.append(code)


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


def admission_to(engine: FakeEngine, **limits: int) -> Any:
    metrics: Any = FakeMetrics()
    queue: Any = engine
    return Admission(queue, metrics, **{"max_queue_requests": 100, "max_queue_tokens": 1000, **limits})


def refused(admission: Admission, num_tokens: int = 0, caller: Caller = ONE) -> ApiError:
    with pytest.raises(ApiError) as caught:
        admission.check(caller, num_tokens)
    assert (caught.value.status_code, caught.value.code) == (429, "server_overloaded")
    return caught.value


def test_a_queue_of_requests(engine: FakeEngine) -> None:
    admission = admission_to(engine)
    engine.waiting.change(ONE, 99, 0)
    admission.check(ONE, 0)
    with admission.reserve(ONE):  # one that is still being encoded waits, too
        assert "100 requests" in refused(admission).message
    admission.check(ONE, 0)
    assert admission._metrics.rejected == ["server_overloaded"]


def test_a_queue_of_tokens(engine: FakeEngine) -> None:
    admission = admission_to(engine)
    admission.check(ONE, 5000)  # alone it may wait, however long it is
    engine.waiting.change(ONE, 2, 600)
    with admission.reserve(ONE):
        admission.check_prompt(ONE, 400)
        with pytest.raises(ApiError, match="600 prompt tokens"):
            admission.check_prompt(ONE, 401)
    refused(admission, 401)


def test_a_place_is_given_back_whatever_happens(engine: FakeEngine) -> None:
    admission = admission_to(engine, max_queue_requests=1)
    for _ in range(3):
        with pytest.raises(KeyError), admission.reserve(ONE):
            admission.check_prompt(ONE, 4)
            raise KeyError
    with admission.reserve(ONE):
        engine.is_ready = False  # it died meanwhile; who is in waits for the next one
        admission.check_prompt(ONE, 4)
    with pytest.raises(EngineUnavailableError), admission.reserve(ONE):
        pass
    assert not admission._preparing


def test_a_full_queue_has_room_for_others(engine: FakeEngine) -> None:
    admission = admission_to(engine)
    engine.waiting.change(ONE, 100, 0)
    refused(admission)
    for _ in range(50):
        admission.check(OTHER, 0)
        engine.waiting.change(OTHER, 1, 0)
    refused(admission, caller=OTHER)
    heavy = Caller("heavy", weight=2)
    engine.waiting.change(heavy, 49, 0)
    admission.check(heavy, 0)
    engine.waiting.change(heavy, 1, 0)
    refused(admission, caller=heavy)
    engine.waiting.change(ONE, -100, 0)
    engine.waiting.change(heavy, -50, 0)
    admission.check(OTHER, 0)


def test_tokens_too(engine: FakeEngine) -> None:
    admission = admission_to(engine)
    engine.waiting.change(ONE, 1, 1000)
    with admission.reserve(OTHER):
        admission.check_prompt(OTHER, 500)
        refused(admission, 501, OTHER)
    refused(admission, 1)


def test_one_being_encoded_counts_as_its_callers(engine: FakeEngine) -> None:
    admission = admission_to(engine, max_queue_requests=2)
    with admission.reserve(ONE), admission.reserve(ONE):
        refused(admission)
        with admission.reserve(OTHER):
            refused(admission, caller=OTHER)


def test_when_to_come_back_is_measured(engine: FakeEngine, clock: Clock) -> None:
    admission = admission_to(engine, max_queue_requests=40)
    engine.waiting.change(ONE, 40, 400)
    assert refused(admission).headers == {"Retry-After": "5"}, "nothing is known yet"
    for _ in range(20):
        engine.started(10)  # two a second
        clock.now += 0.5
    assert refused(admission).headers == {"Retry-After": "10"}, "twenty of forty at two a second"
    engine.waiting.change(ONE, 0, 600)
    assert refused(admission, 1).headers == {"Retry-After": "25"}, "500 tokens at twenty a second"
    clock.now += 59
    assert refused(admission).headers == {"Retry-After": "60"}


def test_what_was_long_ago_says_nothing_of_the_rate(clock: Clock) -> None:
    rate = StartRate()
    rate.note(5)
    clock.now += 61
    assert rate.seconds_for(1, 1) is None


def test_requests_a_minute(clock: Clock) -> None:
    limiter = RateLimiter(6, None)
    assert limiter.has_limits
    for _ in range(6):
        limiter.admit("a")
    with pytest.raises(ApiError, match="6 requests a minute") as caught:
        limiter.admit("a")
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.headers == {"Retry-After": "10"}
    limiter.admit("b")  # another key
    clock.now += 9.9
    with pytest.raises(ApiError):
        limiter.admit("a")
    clock.now += 0.2
    limiter.admit("a")
    clock.now += 3600  # an idle hour is worth no more than a minute
    for _ in range(6):
        limiter.admit("a")
    with pytest.raises(ApiError):
        limiter.admit("a")


def test_tokens_a_minute_are_charged_when_they_are_known(clock: Clock) -> None:
    limiter = RateLimiter(None, 600)
    limiter.admit("a")
    limiter.charge("a", 100)
    limiter.admit("a")
    limiter.charge("a", 700)  # a long reply: 200 below nothing
    with pytest.raises(ApiError, match="600 tokens a minute") as caught:
        limiter.admit("a")
    assert caught.value.headers == {"Retry-After": "21"}
    clock.now += 20.2
    limiter.admit("a")


def test_callers_are_forgotten(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.gates.rate_limits._MAX_CALLERS", 50)
    limiter = RateLimiter(60, None)
    for number in range(500):
        limiter.admit(str(number))
        assert min(number, 45) <= len(limiter._callers) <= 50
    clock.now += 61
    limiter.admit("x")
    assert len(limiter._callers) == 1
