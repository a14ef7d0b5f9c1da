"""A base model with adapters says what the merged weights say, alone and in a batch of many adapters."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from model.backends.cpu.low_rank.table import make_packed_table
from model.contract.engine_config import LoadAdapter
from model.contract.errors import AdapterError
from model.contract.files.model_config import read_model_config
from model.contract.messages import AddRequest
from model.contract.sampling_params import SamplingParams
from tests.support.adapters import (
    QWEN2_TARGETS,
    adapter_config,
    factors,
    merged_checkpoint,
    random_adapter,
    write_adapter,
)
from tests.support.engine_driver import Driver, Reply, make_driver
from tests.support.paths import GOLDEN

TOLERANCE = 1e-4
PROMPT = [(17 * i + 5) % 256 for i in range(70)]  # beyond the trained length of 64: NTK and LogN are on


def request(seq_id: int, adapter_id: int = 0, prompt: Sequence[int] = PROMPT, **sampling: Any) -> AddRequest:
    wanted = SamplingParams(**{"max_tokens": 12, "temperature": 0.0, "num_logprobs": 5, "ignore_eos": True, **sampling})
    return AddRequest(
        seq_ids=(seq_id,), request_id=str(seq_id), prompt_ids=list(prompt), sampling=wanted, adapter_id=adapter_id
    )


def with_adapters(base: Path, folders: Sequence[Path], **changes: Any) -> Driver:
    adapters = tuple(LoadAdapter(i + 1, str(folder)) for i, folder in enumerate(folders))
    changes = {"max_adapters": len(folders), "max_model_len": 256, **changes}
    return make_driver(base, adapters=adapters, **changes)


def assert_same(reply: Reply, expected: Reply) -> None:
    assert reply.token_ids == expected.token_ids
    for ours, theirs in zip(reply.logprobs, expected.logprobs, strict=True):
        assert ours.top_ids == theirs.top_ids
        assert torch.allclose(torch.tensor(ours.top_logprobs), torch.tensor(theirs.top_logprobs), atol=TOLERANCE)


def merged_reply(base: Path, adapter: Path, out: Path, prompt: Sequence[int] = PROMPT) -> Reply:
    driver = make_driver(merged_checkpoint(base, adapter, out), max_model_len=256)
    return driver.run([request(1, prompt=prompt)])[1]


def twelve(base: Path, folder: Path) -> list[Path]:
    """Twelve adapters of several ranks, layouts and targets; the last trained the embedding and the head too."""
    model = read_model_config(base)
    made = [random_adapter(folder / f"a{i}", model, seed=i, rank=(4, 8, 16, 24)[i % 4]) for i in range(7)]
    qwen2 = factors(model, QWEN2_TARGETS, seed=7)
    made.append(write_adapter(folder / "a7", adapter_config(QWEN2_TARGETS, use_rslora=True, lora_alpha=6), qwen2))
    some = factors(model, ["c_attn"], seed=8, layers=[1])
    made.append(write_adapter(folder / "a8", adapter_config(["c_attn"]), some, bin_file=True))
    keys = factors(model, ["k_proj", "down_proj"], seed=9)
    made.append(write_adapter(folder / "a9", adapter_config(["k_proj", "down_proj"]), keys))
    made.append(random_adapter(folder / "a10", model, seed=10, alpha_pattern={"c_attn": 40, "h.0.mlp.w1": 2}))
    generator = torch.Generator().manual_seed(11)
    shape = (model.vocab_size, model.hidden_size)
    whole = {f"base_model.model.{name}.weight": torch.randn(shape, generator=generator) * 0.3
             for name in ("transformer.wte", "lm_head")}  # fmt: skip
    config = adapter_config(modules_to_save=["wte", "lm_head"])
    made.append(write_adapter(folder / "a11", config, {**factors(model, seed=11), **whole}))
    return made


@pytest.mark.parametrize(
    ("name", "compared"), [("ntk_logn_fp32", range(12)), ("gptq_int4", (7, 11)), ("gptq_int8", (1,))]
)
def test_twelve_adapters_equal_their_merged_weights(name: str, compared: Sequence[int], tmp_path: Path) -> None:
    base = GOLDEN / name
    folders = twelve(base, tmp_path)
    prompts = [PROMPT[: 70 - 5 * i] for i in range(12)]
    expected = {i: merged_reply(base, folders[i], tmp_path / f"m{i}", prompts[i]) for i in compared}
    plain = make_driver(base, max_model_len=256).run([request(1)])[1]
    driver = with_adapters(base, folders, enable_prefix_caching=False)
    for i in compared[:2]:
        assert_same(driver.run([request(1, i + 1, prompts[i])])[1], expected[i])
    together = driver.run([request(1), *(request(i + 2, i + 1, prompts[i]) for i in range(12)), request(20)])
    for i in compared:
        assert_same(together[i + 2], expected[i])
    assert_same(together[1], plain)
    assert_same(together[20], plain)
    assert len({tuple(reply.token_ids) for reply in together.values()}) == 13


@pytest.fixture
def base(tiny_checkpoint: Path) -> Path:
    return tiny_checkpoint


@pytest.fixture
def pair(base: Path, tmp_path: Path) -> list[Path]:
    model = read_model_config(base)
    return [random_adapter(tmp_path / f"a{i}", model, seed=i) for i in range(2)]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_types(base: Path, pair: list[Path], dtype: str) -> None:
    """Replies drift from float32's, but an adapter is told from the other and from the base."""
    exact = with_adapters(base, pair).run([request(i + 1, i, max_tokens=1) for i in range(3)])
    driver = with_adapters(base, pair, dtype=dtype)
    replies = driver.run([request(i + 1, i, max_tokens=1) for i in range(3)])
    for i in range(1, 4):
        ours = dict(zip(replies[i].logprobs[0].top_ids, replies[i].logprobs[0].top_logprobs, strict=True))
        theirs = dict(zip(exact[i].logprobs[0].top_ids, exact[i].logprobs[0].top_logprobs, strict=True))
        for token_id in ours.keys() & theirs.keys():
            assert abs(ours[token_id] - theirs[token_id]) < 0.1


def test_the_same_bits_in_any_company(tmp_path: Path) -> None:
    """Alone, among others, in chunks, guessed ahead and behind a cached prefix: seeded replies to the last bit."""
    base = GOLDEN / "gptq_int4"
    model = read_model_config(base)
    folders = [random_adapter(tmp_path / f"a{i}", model, seed=i, rank=8 + 8 * i) for i in range(3)]
    if make_packed_table(model.hidden_size, 3 * model.hidden_size, 1, torch.float32) is None:
        pytest.skip("no compiler for the CPU kernels")
    wanted = [request(i + 1, i % 4, PROMPT[: 50 + i], temperature=0.8, seed=i, max_tokens=10) for i in range(8)]
    driver = with_adapters(base, folders, dtype="bfloat16")
    alone = {asked.seq_ids[0]: driver.run([asked])[asked.seq_ids[0]] for asked in wanted}
    cut = with_adapters(base, folders, dtype="bfloat16", max_num_batched_tokens=24, num_blocks=24).run(wanted)
    for replies in (driver.run(wanted), cut):
        for seq_id, reply in replies.items():
            assert (reply.token_ids, reply.logprobs) == (alone[seq_id].token_ids, alone[seq_id].logprobs)


def test_chunks_and_preemption(base: Path, pair: list[Path]) -> None:
    whole = with_adapters(base, pair).run([request(i + 1, i % 3, max_tokens=40) for i in range(6)])
    driver = with_adapters(base, pair, max_num_batched_tokens=16, num_blocks=22)
    cut = driver.run([request(i + 1, i % 3, max_tokens=40) for i in range(6)])
    assert driver.stats.num_preemptions_total > 0
    for seq_id, reply in whole.items():
        assert_same(cut[seq_id], reply)


def test_cached_prefixes_are_an_adapters_own(base: Path, pair: list[Path]) -> None:
    driver = with_adapters(base, pair)
    first = [driver.run([request(10 * i + 1, i)])[10 * i + 1] for i in range(3)]
    again = [driver.run([request(10 * i + 2, i)])[10 * i + 2] for i in range(3)]
    for one, two in zip(first, again, strict=True):
        assert (one.num_cached_tokens, two.num_cached_tokens) == (0, 64)
        assert_same(two, one)


def test_prompt_logprobs_come_from_the_adapters_head(base: Path, tmp_path: Path) -> None:
    adapter = twelve(base, tmp_path)[-1]
    wanted = request(1, prompt=PROMPT[:40], num_prompt_logprobs=1, max_tokens=1)
    expected = make_driver(merged_checkpoint(base, adapter, tmp_path / "m"), max_model_len=256).run([wanted])[1]
    ours = with_adapters(base, [adapter]).run(
        [request(1, 1, PROMPT[:40], num_prompt_logprobs=1, max_tokens=1), request(2, 0, PROMPT[:40])]
    )[1]
    assert ours.prompt_logprobs is not None and expected.prompt_logprobs is not None
    for a, b in zip(ours.prompt_logprobs, expected.prompt_logprobs, strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=TOLERANCE)


def load(driver: Driver, adapter_id: int, folder: Path, replaces: int = 0) -> str | None:
    """Loads an adapter into a running engine and returns the error, if any."""
    driver.engine.load_adapter(LoadAdapter(adapter_id, str(folder), replaces))
    while not driver.news:
        driver.step()
        time.sleep(0.001)
    news = driver.news.pop()
    assert news.adapter_id == adapter_id
    return news.error


def test_loading_and_unloading_while_requests_run(base: Path, pair: list[Path]) -> None:
    driver = with_adapters(base, pair[:1], max_adapters=2)
    expected = driver.run([request(1, 1, max_tokens=60), request(2, max_tokens=60)])
    driver.add([request(3, 1, max_tokens=60), request(4, max_tokens=60)])
    driver.step()
    assert load(driver, 2, pair[1]) is None
    driver.engine.unload_adapter(1)
    driver.add([request(5, 1), request(6, 2)])
    assert driver.engine._runner.worker.adapters is not None
    assert len(driver.engine._runner.worker.adapters._loaded) == 2  # the one that leaves is still used
    replies = driver.finish()
    assert_same(replies[3], expected[1])
    assert_same(replies[4], expected[2])
    assert replies[5].finish_reason == "error" and "unloaded" in str(replies[5].error)
    assert_same(replies[6], with_adapters(base, pair).run([request(1, 2)])[1])
    assert driver.engine._runner.worker.adapters._loaded.keys() == {2}
    assert driver.engine._runner.worker.adapters.num_bytes > 0


def test_an_adapter_takes_the_place_of_one_that_requests_use(base: Path, pair: list[Path]) -> None:
    """With room for one: running requests finish with the old one; a third waits until they have."""
    driver = with_adapters(base, pair[:1], allow_lora_updates=True)
    expected = driver.run([request(1, 1, max_tokens=60)])[1]
    driver.add([request(2, 1, max_tokens=60)])
    driver.step()
    assert "--max-loras" in str(load(driver, 2, pair[1])), "one beside it would be one too many"
    assert load(driver, 3, pair[1], replaces=1) is None
    driver.engine.unload_adapter(1)
    driver.add([request(3, 3)])
    driver.engine.load_adapter(LoadAdapter(4, str(pair[0]), replaces=3))
    replies = driver.finish()
    assert_same(replies[2], expected)
    assert_same(replies[3], with_adapters(base, pair).run([request(1, 2)])[1])
    while not driver.news:
        driver.step()
        time.sleep(0.001)
    assert driver.news.pop().error is None
    driver.engine.unload_adapter(3)
    assert_same(driver.run([request(5, 4, max_tokens=60)])[5], expected)
    assert driver.engine._runner.worker.adapters is not None
    assert driver.engine._runner.worker.adapters._loaded.keys() == {4}


def test_a_slot_is_used_again_without_a_trace(base: Path, pair: list[Path]) -> None:
    driver = with_adapters(base, pair[:1])
    assert "--max-loras" in str(load(driver, 2, pair[1]))
    driver.engine.unload_adapter(1)
    assert load(driver, 3, pair[1]) is None
    assert_same(driver.run([request(1, 3)])[1], with_adapters(base, pair).run([request(1, 2)])[1])
    driver.engine.unload_adapter(3)
    driver.engine.unload_adapter(99)
    assert_same(driver.run([request(2)])[2], make_driver(base, max_model_len=256).run([request(1)])[1])
    assert driver.engine._runner.worker.adapters is not None
    assert driver.engine._runner.worker.adapters.num_bytes == 0


def test_a_broken_adapter_leaves_the_engine_as_it_was(base: Path, pair: list[Path], tmp_path: Path) -> None:
    model = read_model_config(base)
    broken = random_adapter(tmp_path / "broken", model, use_dora=True)
    driver = with_adapters(base, pair)
    before = driver.run([request(1, 1)])[1]
    assert "DoRA" in str(load(driver, 3, broken))
    assert "no adapter_config.json" in str(load(driver, 4, tmp_path / "nowhere"))
    assert_same(driver.run([request(2, 1)])[2], before)
    with pytest.raises(AdapterError, match="DoRA"):
        with_adapters(base, [broken])
    tolerant = with_adapters(base, [pair[0], broken], adapters_may_fail=True)
    assert [adapter.error is None for adapter in tolerant.engine.ready.adapters] == [True, False]
    replies = tolerant.run([request(1, 1), request(2, 2)])
    assert_same(replies[1], before)
    assert replies[2].finish_reason == "error"


def test_float16_refuses_what_it_cannot_hold(base: Path, tmp_path: Path) -> None:
    model = read_model_config(base)
    large = write_adapter(tmp_path / "a", adapter_config(lora_alpha=5e5), factors(model, size=3.0))
    with pytest.raises(AdapterError, match="beyond float16"):
        with_adapters(base, [large], dtype="float16")


def test_an_engine_without_room_for_adapters(base: Path, pair: list[Path]) -> None:
    driver = make_driver(base, max_model_len=256)
    assert "without adapters" in str(load(driver, 1, pair[0]))
    assert driver.run([request(1, 1)])[1].finish_reason == "error"
