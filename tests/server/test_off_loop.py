"""Work off the event loop: for large requests only, in turns that callers take."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial

import pytest

from server.gates.callers import Caller
from server.gates.request_context import body_bytes_var
from server.off_loop import HUGE_BYTES, SMALL_BYTES, FairPool, OffLoop, begin_request


@pytest.mark.parametrize(
    ("num_bytes", "is_elsewhere"), [(SMALL_BYTES, False), (SMALL_BYTES + 1, True), (1 << 22, True)]
)
async def test_work_for_a_large_body_is_done_on_a_thread(num_bytes: int, is_elsewhere: bool) -> None:
    token = body_bytes_var.set(num_bytes)
    off_loop = OffLoop()
    assert (await off_loop.run(threading.get_ident) != threading.get_ident()) == is_elsewhere
    off_loop.close()
    body_bytes_var.reset(token)


async def test_who_came_first_is_finished_first() -> None:
    """Later pieces of a request go before the first ones of those after it; who has left is passed over."""
    off_loop = OffLoop()
    begun, go_on = threading.Event(), threading.Event()
    done: list[str] = []

    async def serve(name: str) -> None:
        body_bytes_var.set(HUGE_BYTES + 1)
        await off_loop.run(lambda: (begun.set(), go_on.wait()))
        await off_loop.run(lambda: done.append(name))

    tasks = [asyncio.create_task(serve(name)) for name in "abcd"]
    while not begun.is_set():
        await asyncio.sleep(0.001)
    tasks.pop(2).cancel()
    pool = off_loop._huge
    pieces = [pool.submit((number, 0), partial(done.append, f"{number:g}")) for number in (9.0, -1.0, 5.0)]
    go_on.set()
    await asyncio.gather(*tasks, *map(asyncio.wrap_future, pieces))
    off_loop.close()
    assert sorted(done) == ["-1", "5", "9", "a", "b", "d"]
    assert done[0] == "-1"
    assert done.index("5") < done.index("9")


def test_callers_take_turns_by_weight() -> None:
    """Whoever floods a pool keeps nobody else waiting for more than the turn that is taken."""
    pool = FairPool(1, "fair")
    begun, go_on = threading.Event(), threading.Event()
    done: list[str] = []
    flood, light, heavy = Caller("a"), Caller("b"), Caller("c", weight=2)
    pool.submit(pool.next_turn(flood), lambda: (begun.set(), go_on.wait()))
    assert begun.wait(5)
    later = [pool.submit(pool.next_turn(one), partial(done.append, one.name)) for one in [flood] * 9]
    later += [pool.submit(pool.next_turn(one), partial(done.append, one.name)) for one in [heavy] * 4 + [light] * 2]
    go_on.set()
    for future in later:
        future.result(5)
    pool.close()
    assert "".join(done[:8]) == "cbcacbca"  # the flood's first turn was taken
    assert set(done[8:]) == {"a"}


def test_a_pool_forgets_the_turns_that_have_passed() -> None:
    pool = FairPool(1, "fair")
    for number in range(5000):
        pool.submit(pool.next_turn(Caller(str(number))), lambda: None).result(5)
        pool.submit(pool.next_turn(Caller("often")), lambda: None)
    assert len(pool._next_turns) < 2000
    pool.close()


async def test_a_request_takes_a_turn_of_its_own_also_in_the_context_of_another() -> None:
    """Connections are called, and the lines of a batch run, in the context of a request before them."""
    off_loop = OffLoop()
    begun, go_on = threading.Event(), threading.Event()
    done: list[str] = []

    async def serve(caller: str, work: Callable[[], object]) -> None:
        begin_request(Caller(caller))
        assert body_bytes_var.get() == 0
        body_bytes_var.set(HUGE_BYTES + 1)
        await off_loop.run(work)

    await serve("flood", lambda: None)  # its context is what the tasks inherit
    tasks = [asyncio.create_task(serve("flood", lambda: (begun.set(), go_on.wait())))]
    while not begun.is_set():
        await asyncio.sleep(0.001)
    tasks += [asyncio.create_task(serve("flood", partial(done.append, "flood"))) for _ in range(3)]
    tasks.append(asyncio.create_task(serve("other", partial(done.append, "other"))))
    while len(off_loop._huge._due) < 4:
        await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(*tasks)
    off_loop.close()
    assert done == ["other", "flood", "flood", "flood"]


async def test_work_that_waits_when_the_pool_closes_is_cancelled() -> None:
    pool = FairPool(1, "closing")
    begun, go_on = threading.Event(), threading.Event()
    running = pool.submit((0.0, 0), lambda: (begun.set(), go_on.wait()))
    assert begun.wait(5)
    waiting = pool.submit((1.0, 0), lambda: None)
    pool.close()
    go_on.set()
    running.result(5)
    assert waiting.cancelled()
