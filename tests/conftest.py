"""Fixtures for everything that needs a checkpoint or a running server."""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import openai
import pytest
import torch

from demo.random_checkpoint import Shape, write
from tests.support import hypothesis_settings  # noqa: F401  its profile
from tests.support.server_process import Server, ServerProcess, running_server
from tests.support.wire import Wire

# Without a GPU Triton kernels run in its interpreter. It reads this once, when it is first imported, by whomever.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# What test modules import stays to the end: to look through all of it again and again takes a quarter of their import.
gc.disable()

# The workers fill all cores: threads of two would only wait for one another, and OpenMP's wait busily.
torch.set_num_threads(1)

SMALL = ("--kv-cache-memory", "64MiB", "--threads", "1", "--device", "cpu")


def pytest_xdist_auto_num_workers() -> int:
    """One worker more than cores: a quarter of a worker's time goes by while servers, browsers and terminals work."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def demo_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small random checkpoint with a 256-byte vocabulary."""
    folder = tmp_path_factory.mktemp("checkpoints") / "Qwen-Demo"
    write(folder, Shape())
    return folder


@pytest.fixture(scope="session")
def server(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for all tests that do not harm it."""
    log_file = tmp_path_factory.mktemp("server") / "log"
    with running_server(demo_checkpoint, log_file, *SMALL, "--max-model-len", "2048") as process:
        yield process


def sdk_of(server: Server) -> openai.OpenAI:
    """The official SDK for a server of a test's own."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    """The official SDK, without retries."""
    with sdk_of(server) as sdk:
        yield sdk


@pytest.fixture
async def async_client(server: ServerProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official SDK, asynchronous, without retries."""
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as sdk:
        yield sdk


@pytest.fixture(scope="session")
def max_model_len(server: ServerProcess) -> int:
    """Context of the shared server."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as sdk:
        return int(sdk.models.list().data[0].model_dump()["max_model_len"])


@pytest.fixture(scope="session")
def wire(server: ServerProcess) -> Iterator[Wire]:
    """The shared server, spoken to in plain JSON."""
    speaker = Wire(server.url)
    with speaker.http:
        yield speaker
