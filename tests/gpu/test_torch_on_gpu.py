"""torch's operations on a real device: what older ones and those without Triton get (`--kernels torch`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from model.backends.torch_device_backend import TorchDeviceBackend
from model.contract.engine_config import EngineConfig
from model.loop.engine import Engine
from tests.gpu.on_gpu import drive, greedy_prompts
from tests.support.engine_driver import Driver
from tests.support.golden import FOLDERS, assert_golden, greedy_requests, read_cases
from tests.support.paths import GOLDEN


@pytest.mark.parametrize("folder", FOLDERS)
def test_golden_in_float32(folder: str) -> None:
    cases = read_cases(folder)
    driver = drive(GOLDEN / folder, num_blocks=400, max_num_batched_tokens=96, kernels="torch")
    assert isinstance(driver.engine._runner.worker.backend, TorchDeviceBackend)
    assert_golden(cases, driver.run(greedy_requests(cases)))
    assert_golden(cases, driver.run(greedy_requests(cases, 100)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8"])
def test_first_tokens_in_half_precision(dtype: str, kv_cache_dtype: str) -> None:
    """As a T4 serves: 4-bit weights expanded for each product, torch's attention over gathered keys."""
    cases = read_cases("gptq_int4")
    settings: dict[str, Any] = {"dtype": dtype, "kv_cache_dtype": kv_cache_dtype, "kernels": "torch"}
    replies = drive(GOLDEN / "gptq_int4", num_blocks=400, **settings).run(greedy_requests(cases))
    equal = [replies[i].token_ids[0] == case.greedy[0] for i, case in enumerate(cases)]
    assert sum(equal) >= len(cases) - 1


def test_its_cache_takes_its_share_of_the_memory(demo_checkpoint: Path) -> None:
    free_before, total = torch.cuda.mem_get_info()
    share = (total - free_before) / total + 0.1
    config = EngineConfig(
        checkpoint_path=str(demo_checkpoint), device="cuda", kernels="torch", gpu_memory_utilization=share,
        max_num_seqs=4096, max_model_len=8192,
    )  # fmt: skip
    engine = Engine(config)
    assert engine.ready.kv_cache_bytes > 0.05 * total
    replies = Driver(engine).run(greedy_prompts(64, 500))
    assert all(len(reply.token_ids) == 8 for reply in replies.values())
    assert total - torch.cuda.mem_get_info()[0] <= share * total + (256 << 20)
