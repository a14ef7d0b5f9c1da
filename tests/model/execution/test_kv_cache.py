"""The int8 cache: its arithmetic, its exactness next to the published scheme's, and what it saves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.backends import torch_attention, torch_backend
from model.backends.torch_attention import rotate_and_cache
from model.contract.files.model_config import read_model_config
from model.contract.messages import AddRequest
from model.contract.sampling_params import SamplingParams
from model.execution.forward_batch import ForwardBatch
from model.execution.kv_cache import allocate_kv_cache, kv_cache_block_bytes, quantize
from tests.support.engine_driver import LoadedModel, make_driver, stepwise_logits
from tests.support.golden import read_cases
from tests.support.paths import GOLDEN

FOLDERS = ["ntk_logn_fp32", "plain_theta1e6_fp32"]


def test_quantising_is_off_by_half_a_step_at_most() -> None:
    x = torch.randn(3, 5, 64) * torch.logspace(-6, 6, 5)[:, None]
    integers, scales = quantize(x)
    assert integers.dtype == torch.int8 and scales.shape == (3, 5)
    assert ((integers * scales[..., None] - x).abs() <= scales[..., None] * 0.5001).all()
    assert (integers.abs().amax(-1) == 127).all()


def test_zeros_stay_zeros() -> None:
    integers, scales = quantize(torch.zeros(2, 64))
    assert not integers.any() and torch.isfinite(scales).all()


def test_half_the_bytes_of_bfloat16_and_a_scale() -> None:
    config = read_model_config(GOLDEN / "ntk_logn_fp32")
    cache = allocate_kv_cache(config, num_blocks=3, block_size=16, dtype=torch.int8, device=torch.device("cpu"))
    assert cache.num_bytes == 3 * kv_cache_block_bytes(config, 16, torch.int8)
    wide = kv_cache_block_bytes(config, 16, torch.bfloat16)
    per_vector = config.head_dim
    assert wide / kv_cache_block_bytes(config, 16, torch.int8) == pytest.approx(2 * per_vector / (per_vector + 4))


def rotate_and_round(
    qkv: torch.Tensor, data: torch.Tensor, scales: None, batch: ForwardBatch, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """Rounds what is written to 8 bits with a scale and a zero for each token, over all heads, as published."""
    rotated = rotate_and_cache(qkv, data, scales, batch, cos, sin)
    x = data[:, :, batch.slots]
    low, high = x.amin((1, 3), keepdim=True), x.amax((1, 3), keepdim=True)
    scale = (high - low) / 255
    data[:, :, batch.slots] = ((x - low) / scale).round() * scale + low
    return rotated


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_less_exact_than_the_published_scheme(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LoadedModel(GOLDEN / folder)
    ids = max((case.prompt + case.greedy for case in read_cases(folder)), key=len)[:160]
    exact = stepwise_logits(model, ids, torch.float32)
    ours = (stepwise_logits(model, ids, torch.int8) - exact).square().mean().sqrt()
    monkeypatch.setattr(torch_backend, "attention_code", lambda cache, dtype: None)
    monkeypatch.setattr(torch_attention, "rotate_and_cache", rotate_and_round)
    theirs = (stepwise_logits(model, ids, torch.float32) - exact).square().mean().sqrt()
    print(f"{folder}: error of logits {ours:.5f}, published scheme {theirs:.5f}, spread {exact.std():.3f}")
    assert 0 < ours <= theirs
    assert ours < 0.02 * exact.std()


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("kv_cache_dtype", ["int8", "bfloat16"])
def test_greedy_replies_agree_with_those_of_the_exact_cache(folder: str, kv_cache_dtype: str) -> None:
    """Random weights are all near-ties, so replies part; until they do, they are the same."""
    cases = [case for case in read_cases(folder) if len(case.prompt) <= 100]

    def requests() -> list[AddRequest]:
        sampling = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
        return [
            AddRequest(seq_ids=(i,), request_id="kv", prompt_ids=case.prompt, sampling=sampling)
            for i, case in enumerate(cases)
        ]

    exact = make_driver(GOLDEN / folder, dtype="float32").run(requests())
    narrow = make_driver(
        GOLDEN / folder, dtype="float32", kv_cache_dtype=kv_cache_dtype, max_num_batched_tokens=24
    ).run(requests())
    equal = total = 0
    for i in exact:
        for a, b in zip(exact[i].token_ids, narrow[i].token_ids, strict=True):
            total += 1
            if a != b:
                break
            equal += 1
    print(f"{folder} {kv_cache_dtype}: {equal} of {total} tokens until replies part")
    assert equal / total >= 0.9


def test_the_engine_fits_nearly_twice_the_tokens(tmp_path: Path) -> None:
    settings = {"dtype": "bfloat16", "kv_cache_memory_bytes": 4 << 20}
    wide = make_driver(GOLDEN / "ntk_logn_fp32", **settings).engine.ready
    narrow = make_driver(GOLDEN / "ntk_logn_fp32", kv_cache_dtype="int8", **settings).engine.ready
    head_dim = read_model_config(GOLDEN / "ntk_logn_fp32").head_dim
    assert narrow.num_blocks / wide.num_blocks == pytest.approx(2 * head_dim / (head_dim + 4), rel=0.01)
