"""A mailbox that nobody empties does not fill the memory."""

from __future__ import annotations

import pytest

from model.contract.messages import SequenceOutput
from server.engine import handle as request_handle
from server.engine.handle import RequestHandle
from server.wire.errors import ApiError


@pytest.fixture
def aborted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    monkeypatch.setattr(request_handle, "MAX_PENDING_OUTPUTS", 10)
    return []


async def test_a_consumer_that_never_looks_loses_the_request(aborted: list[int]) -> None:
    handle = RequestHandle("r", [1, 2], lambda _, seq_ids: aborted.extend(seq_ids))
    for number in range(20):
        handle.deliver(SequenceOutput(1, [number]))
    assert aborted == [1, 2]
    assert [output.token_ids[0] for _, output in await handle.next()] == list(range(11))
    with pytest.raises(ApiError) as caught:
        await handle.next()
    assert caught.value.code == "reader_too_slow"


async def test_one_that_looks_now_and_then_loses_nothing(aborted: list[int]) -> None:
    handle = RequestHandle("r", [1], lambda _, seq_ids: aborted.extend(seq_ids))
    seen = 0
    for number in range(30):
        handle.deliver(SequenceOutput(1, [number], "stop" if number == 29 else None))
        if number % 10 == 9:
            seen += len(await handle.next())
    assert (seen, await handle.next(), aborted) == (30, [], [])
