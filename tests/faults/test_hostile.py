"""Legal requests that cost as much as they can: whatever becomes of them, nothing keeps a loop that others share.

How long they take and what the others see of it depends on the machine and is measured by `benchmarks.soak`; here it
counts that the server's own watchdog saw nothing (250 ms of computing in one go on the event loop, 500 ms beside the
model in the engine).
"""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from benchmarks.soak.hostile import attacks, launch
from tests.support.server_process import ServerProcess

ATTACKS = attacks(ord("Y"))
# These are served or refused within seconds, also on a busy machine; of the others the client leaves.
PATIENCE_S = 1.0


@pytest.mark.parametrize("name", ATTACKS)
async def test_nothing_keeps_a_loop(name: str, server: ServerProcess) -> None:
    attack = ATTACKS[name]
    before = server.metric("qwen:loop_blocked_total")
    await launch(urlsplit(server.url), replace(attack, copies=min(4, attack.copies)), PATIENCE_S)
    server.wait_idle(60)
    blocked = server.metric("qwen:loop_blocked_total") - before
    assert not blocked, [line for line in server.log().splitlines() if " kept " in line][-3:]


async def test_the_watchdog_sees_what_does(server: ServerProcess) -> None:
    """Else the tests above could not fail."""
    assert server.metric("qwen:loop_blocked_seconds_max") > 0
