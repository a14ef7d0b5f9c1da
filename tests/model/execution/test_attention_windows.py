"""Window attention: what files and flags say, and that it is a plain mask, however the engine cuts the work up."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from model.architectures.qwen import QWenAttention
from model.backends.torch_attention import rotate, rotation
from model.backends.torch_backend import TorchBackend
from model.contract.attention_windows import num_blocks_kept, num_blocks_passed, windows_of
from model.contract.errors import CheckpointError, ConfigError
from model.contract.files.model_config import read_model_config
from model.contract.memory_plan import plan_memory
from model.contract.messages import AddRequest
from model.contract.sampling_params import SamplingParams
from model.execution.forward_batch import ForwardBatch
from tests.support.engine_driver import LoadedModel, make_driver
from tests.support.paths import GOLDEN

PROMPTS = [[(17 * i + 5 * n) % 250 + 1 for i in range(length)] for n, length in enumerate((3, 70, 150))]
NUM_TOKENS = 12


class PlainMask(TorchBackend):
    """All of a sequence at once, every score there is, and a mask."""

    windows: tuple[int, ...] = ()

    def attention(self, qkv: torch.Tensor, layer: int, batch: ForwardBatch, plan: Any) -> torch.Tensor:
        num_heads, head_dim = plan._cache.data.shape[2], plan._cache.data.shape[4]
        x = qkv.view(len(qkv), 3, num_heads, head_dim)
        q, k = rotate(x[:, :2], *rotation(batch, head_dim), 2 * batch.cos.shape[-1]).unbind(1)
        scores = torch.einsum("ihd,jhd->hij", q, k).double()
        distance = torch.arange(len(x))[:, None] - torch.arange(len(x))
        is_seen = (distance >= 0) & (distance < (self.windows[layer] or len(x)))
        weights = scores.masked_fill(~is_seen, float("-inf")).softmax(-1)
        return torch.einsum("hij,jhd->ihd", weights, x[:, 2].double()).flatten(1).to(qkv.dtype)


def with_plain_mask(folder: str, windows: tuple[int, ...]) -> LoadedModel:
    model = LoadedModel(GOLDEN / folder)
    backend = PlainMask(torch.device("cpu"))
    backend.windows = windows
    attend_with(model, backend)
    return model


def attend_with(model: LoadedModel, backend: TorchBackend) -> None:
    for module in model.model.modules():
        if isinstance(module, QWenAttention):
            module._backend = backend


@pytest.mark.parametrize("own_kernels", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize(
    ("folder", "windows"),
    [("ntk_logn_fp32", (20, 65, 0)), ("plain_theta1e6_fp32", (1, 33, 7)), ("gptq_int4", (48, 48))],
)
def test_logits_are_those_of_a_plain_mask(folder: str, windows: tuple[int, ...], own_kernels: bool) -> None:
    """With NTK and LogN, below and far above the trained length."""
    plain, model = with_plain_mask(folder, windows), LoadedModel(GOLDEN / folder)
    model.backend._own_kernels = own_kernels
    unbounded = LoadedModel(GOLDEN / folder).logits(PROMPTS[2])
    model.config = dataclasses.replace(model.config, attention_windows=windows)
    for prompt in PROMPTS:
        torch.testing.assert_close(model.logits(prompt), plain.logits(prompt), rtol=0, atol=5e-5)
    assert (plain.logits(PROMPTS[2]) - unbounded).abs().max() > 1e-3, "the windows leave something out"


@pytest.mark.parametrize(("windows", "num_blocks"), [((24, 40, 33), 9), ((0, 24, 24), 40)])
def test_the_engine_says_what_a_plain_mask_says(windows: tuple[int, ...], num_blocks: int) -> None:
    """In a pool that holds no whole prompt where every layer has a window; cached, in chunks, several at a time."""
    plain = with_plain_mask("ntk_logn_fp32", windows)
    driver = make_driver(
        GOLDEN / "ntk_logn_fp32",
        num_blocks,
        8,
        attention_window=windows,
        max_num_batched_tokens=11,
        max_model_len=200,
    )
    sampling = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
    requests = [
        AddRequest(seq_ids=(i,), request_id="window", prompt_ids=prompt, sampling=sampling)
        for i, prompt in enumerate(PROMPTS)
    ]
    for replies in (driver.run(requests), driver.run(requests)):
        for prompt, reply in zip(PROMPTS, replies.values(), strict=True):
            logits = plain.logits([*prompt, *reply.token_ids], len(prompt))
            assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == reply.token_ids


def folder_with(tmp_path: Path, window_attn: Any) -> Path:
    folder = tmp_path / "checkpoint"
    shutil.copytree(GOLDEN / "plain_theta1e6_fp32", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "window_attn": window_attn}))
    return folder


@pytest.mark.parametrize(
    ("value", "windows"),
    [
        *((value, ()) for value in (None, False, 0, [0, 0, 0])),
        *((value, (512,) * 3) for value in (512, [512], [512] * 3)),
        ([64, 0, 9], (64, 0, 9)),
    ],
)
def test_what_a_config_says(tmp_path: Path, value: Any, windows: tuple[int, ...]) -> None:
    config = read_model_config(folder_with(tmp_path, value))
    assert config.attention_windows == windows
    assert config.with_windows(None) is config
    assert config.with_windows((0,)).attention_windows == ()
    assert config.with_windows((7,)).attention_windows == (7, 7, 7)


@pytest.mark.parametrize("value", [True, -1, 1.5, "512", [1, 2], [], [64, None, 3], {"a": 1}, 1 << 40, [True, 2, 3]])
def test_what_a_config_may_not_say(tmp_path: Path, value: Any) -> None:
    with pytest.raises(CheckpointError, match="'window_attn' should be"):
        read_model_config(folder_with(tmp_path, value))


def test_a_flag_for_another_number_of_layers() -> None:
    config = read_model_config(GOLDEN / "plain_theta1e6_fp32")
    with pytest.raises(ConfigError, match="--attention-window should be one number, or one for each of 3 layers"):
        config.with_windows((1, 2))


def test_no_sequence_ever_holds_more_than_is_planned() -> None:
    for window in (1, 15, 16, 17, 100):
        for step in (1, 16, 50):
            most = num_blocks_kept(10_000, 16, window, step)
            for computed in range(400):
                assert -(-(computed + step) // 16) - num_blocks_passed(computed, 16, window) <= most
                assert num_blocks_passed(computed, 16, window) * 16 <= max(0, computed + 1 - window)


def test_memory_follows_the_largest_window() -> None:
    config = dataclasses.replace(read_model_config(GOLDEN / "plain_theta1e6_fp32"), seq_length=8192)
    plans = [plan_memory(config.with_windows(windows)) for windows in ((0,), (512, 1024, 700), (512, 9, 0))]
    kept = [dataclasses.replace(plan, max_num_batched_tokens=256).blocks_of(8192) for plan in plans]
    assert kept == [512, (1024 + 2 * 256) // 16 + 2, 512]


def test_one_number_is_for_all_layers() -> None:
    assert windows_of((5,), 3) == windows_of(5, 3) == (5, 5, 5)
