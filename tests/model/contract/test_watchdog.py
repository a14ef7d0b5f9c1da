"""What keeps a loop is noticed, with its place and its request; what is meant to take long is not."""

from __future__ import annotations

import logging
import threading

import pytest

from model.contract import watchdog
from model.contract.watchdog import Watchdog


class Clock:
    """Stands in for time: the wall's and the process's own."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def monotonic(self) -> float:
        return self.wall

    def process_time(self) -> float:
        return self.cpu

    def pass_(self, seconds: float, *, computing: bool = True) -> None:
        self.wall += seconds
        self.cpu += seconds * computing


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watchdog, "time", clock)
    return clock


def test_only_what_is_computed_and_not_excused_counts(clock: Clock) -> None:
    watched = Watchdog("it", 0.25)
    watched.begin(0.05)
    clock.pass_(0.29)
    watched.end()
    assert (watched.num_blocked, watched.longest_s) == (0, pytest.approx(0.24))
    watched.begin()
    clock.pass_(9, computing=False)  # another program's turn
    watched.end()
    watched.begin()
    clock.pass_(0.1)
    with watched.excused():
        clock.pass_(5)
    clock.pass_(0.1)
    watched.end()
    watched.end()
    assert (watched.num_blocked, watched.longest_s) == (0, pytest.approx(0.24))
    watched.begin()
    with watched.excused():
        clock.pass_(5)
    clock.pass_(0.3)
    watched.end()
    assert (watched.num_blocked, watched.longest_s) == (1, pytest.approx(0.3))


def test_a_warning_says_whose_it_was_and_where(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    looked = threading.Event()

    def for_whom() -> str:
        looked.set()
        return "req-7"

    watched = Watchdog("it", 0.02, for_whom)
    watched.start()
    watched.begin()
    clock.pass_(1)
    assert looked.wait(60)
    while not watched._seen:
        pass
    watched.end()
    watched.stop()
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    said = "request req-7 kept it busy for 1.00 s in tests/model/contract/test_watchdog.py:"
    assert record.getMessage().startswith(said)
    assert "test_a_warning_says_whose_it_was_and_where" in record.getMessage()
