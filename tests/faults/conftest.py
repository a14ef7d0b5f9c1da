"""Servers that tests of faults may harm; each test has its own, but for those that end as they began."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.soak.server import SoakServer, soak_server
from tests.conftest import SMALL

StartServer = Callable[..., SoakServer]


@pytest.fixture
def start_server(demo_checkpoint: Path, tmp_path: Path) -> Iterator[StartServer]:
    """Starts a server with further flags; it ends with the test."""
    with ExitStack() as stack:

        def start(*flags: str) -> SoakServer:
            return stack.enter_context(soak_server(str(demo_checkpoint), tmp_path / "log", *SMALL, *flags))

        yield start


@pytest.fixture(scope="session")
def plain_server(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoakServer]:
    """For tests after which it is as before: nothing runs, and no more is held."""
    log_file = tmp_path_factory.mktemp("faults") / "log"
    with soak_server(str(demo_checkpoint), log_file, *SMALL, "--send-timeout-s", "1") as server:
        yield server
