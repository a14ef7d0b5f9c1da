"""The loop as a whole on a real (tiny) model: endings, choices, scores, aborts, refusals, and nothing left behind."""

from __future__ import annotations

import gc
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.contract.engine_config import EngineConfig
from model.contract.errors import ConfigError
from model.contract.messages import (
    AddRequest,
    EngineReady,
    EngineStats,
)
from model.contract.sampling_params import SamplingParams
from model.loop.engine import Engine
from tests.support.engine_driver import Driver, LoadedModel, Reply, make_driver
from tests.support.paths import GOLDEN

PROMPT = [9, 3, 200, 41, 41, 7]


def request(seq_ids: int | tuple[int, ...], prompt: list[int], priority: int = 0, **sampling: Any) -> AddRequest:
    return AddRequest(
        seq_ids=(seq_ids,) if isinstance(seq_ids, int) else seq_ids,
        request_id=f"request of {seq_ids}",
        prompt_ids=prompt,
        sampling=SamplingParams(**{"max_tokens": 12, "temperature": 0.0, **sampling}),
        priority=priority,
    )


@pytest.fixture(scope="module")
def driver(tiny_checkpoint: Path) -> Driver:
    """An engine that several tests use one after another; each leaves it empty."""
    return make_driver(tiny_checkpoint)


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> LoadedModel:
    return LoadedModel(tiny_checkpoint)


def greedy_ids(model: LoadedModel, prompt: list[int], num_tokens: int) -> list[int]:
    ids = list(prompt)
    for _ in range(num_tokens):
        ids.append(int(model.logits(ids, len(prompt))[-1].argmax()))
    return ids[len(prompt) :]


def random_prompt(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(300) for _ in range(length)]


# --- endings


def test_greedy_follows_the_model(driver: Driver, model: LoadedModel) -> None:
    reply = driver.run([request(0, PROMPT)])[0]
    assert reply.token_ids == greedy_ids(model, PROMPT, 12)
    assert reply.finish_reason == "length"
    assert reply.stop_token_id is None


@pytest.mark.parametrize("max_tokens", [1, 2])
def test_max_tokens(driver: Driver, model: LoadedModel, max_tokens: int) -> None:
    reply = driver.run([request(0, PROMPT, max_tokens=max_tokens)])[0]
    assert reply.token_ids == greedy_ids(model, PROMPT, max_tokens)


@pytest.mark.parametrize("field", ["eos_token_ids", "stop_token_ids"])
def test_an_ending_id_ends_it_and_is_reported(driver: Driver, model: LoadedModel, field: str) -> None:
    ids = greedy_ids(model, PROMPT, 12)
    ending = ids[5]
    reply = driver.run([request(0, PROMPT, **{field: (299, ending)})])[0]
    assert reply.token_ids == ids[: ids.index(ending) + 1]
    assert (reply.finish_reason, reply.stop_token_id) == ("stop", ending)


def test_ignore_eos_still_minds_stop_ids(driver: Driver, model: LoadedModel) -> None:
    ids = greedy_ids(model, PROMPT, 12)
    reply = driver.run([request(0, PROMPT, eos_token_ids=(ids[2],), ignore_eos=True)])[0]
    assert (reply.token_ids, reply.finish_reason) == (ids, "length")
    reply = driver.run([request(1, PROMPT, eos_token_ids=(ids[2],), stop_token_ids=(ids[4],), ignore_eos=True)])[1]
    assert (reply.token_ids, reply.finish_reason) == (ids[: ids.index(ids[4]) + 1], "stop")


def test_an_ending_id_as_the_last_token_allowed_is_a_stop(driver: Driver, model: LoadedModel) -> None:
    ids = greedy_ids(model, PROMPT, 3)
    reply = driver.run([request(0, PROMPT, max_tokens=3, stop_token_ids=(ids[2],))])[0]
    assert reply.finish_reason == ("stop" if ids.index(ids[2]) == 2 else reply.finish_reason)
    assert reply.token_ids == ids[: ids.index(ids[2]) + 1]


def test_an_ending_id_in_the_prompt_means_nothing(driver: Driver) -> None:
    reply = driver.run([request(0, PROMPT, stop_token_ids=(PROMPT[-1],), max_tokens=2)])[0]
    assert len(reply.token_ids) == 2


def test_min_tokens_holds_endings_back(driver: Driver, model: LoadedModel) -> None:
    endings = tuple(greedy_ids(model, PROMPT, 4))
    reply = driver.run([request(0, PROMPT, eos_token_ids=endings[:2], stop_token_ids=endings[2:], min_tokens=5)])[0]
    expected: list[int] = []
    while not expected or expected[-1] not in endings:
        logits = model.logits([*PROMPT, *expected], len(PROMPT))[-1]
        if len(expected) < 5:
            logits[list(endings)] = -math.inf
        expected.append(int(logits.argmax()))
        if len(expected) == 12:
            break
    assert reply.token_ids == expected
    assert len(expected) > 5


def test_the_context_ends_it(tiny_checkpoint: Path) -> None:
    driver = make_driver(tiny_checkpoint, max_model_len=20)
    replies = driver.run([request(0, PROMPT, max_tokens=100), request(1, [5] * 19, max_tokens=100)])
    assert len(replies[0].token_ids) == 14
    assert len(replies[1].token_ids) == 1
    assert replies[0].finish_reason == replies[1].finish_reason == "length"


# --- choices


def test_choices_of_one_prompt(driver: Driver) -> None:
    prompt = random_prompt(random.Random(1), 50)
    sampling = {"temperature": 1.5, "seed": 7}
    replies = driver.run([request((0, 1, 2), prompt, **sampling)])
    texts = [replies[i].token_ids for i in range(3)]
    assert len({tuple(ids) for ids in texts}) == 3
    assert replies[0].num_cached_tokens == 0
    assert replies[1].num_cached_tokens == replies[2].num_cached_tokens == 48, "the prompt is computed once"
    assert driver.run([request(10, prompt, **sampling)])[10].token_ids == texts[0], "choice 0 is what n=1 gives"
    again = driver.run([request((20, 21, 22), prompt, **sampling)])
    assert [again[i].token_ids for i in (20, 21, 22)] == texts


def test_greedy_choices_are_alike(driver: Driver, model: LoadedModel) -> None:
    replies = driver.run([request((0, 1, 2, 3), PROMPT)])
    assert {tuple(reply.token_ids) for reply in replies.values()} == {tuple(greedy_ids(model, PROMPT, 12))}


def test_without_a_seed_choices_and_requests_differ(tiny_checkpoint: Path) -> None:
    def texts(**changes: Any) -> list[list[int]]:
        replies = make_driver(tiny_checkpoint, **changes).run(
            [request((0, 1), PROMPT, temperature=1.5), request(2, PROMPT, temperature=1.5)]
        )
        return [reply.token_ids for reply in replies.values()]

    first = texts(seed=5)
    assert len({tuple(ids) for ids in first}) == 3
    assert texts(seed=5) == first, "the engine's own seed makes a run repeatable"
    assert texts(seed=6) != first
    assert texts(seed=None) != texts(seed=None)


# --- scores of the prompt


def expected_scores(model: LoadedModel, prompt: list[int]) -> torch.Tensor:
    return model.logits(prompt).double().log_softmax(-1)


def assert_scores(reply: Reply, expected: torch.Tensor, prompt: list[int], num_top: int) -> None:
    assert reply.prompt_logprobs is not None
    assert len(reply.prompt_logprobs) == len(prompt) - 1
    for position, entry in enumerate(reply.prompt_logprobs):
        row = expected[position]
        assert entry.logprob == pytest.approx(float(row[prompt[position + 1]]), abs=1e-4)
        assert entry.top_logprobs == pytest.approx(row.topk(num_top).values.tolist() if num_top else [], abs=1e-4)
        assert [float(row[i]) for i in entry.top_ids] == pytest.approx(entry.top_logprobs, abs=1e-4)


def test_scores_of_a_golden_prompt() -> None:
    """Against the published code's own logits, teacher-forced: the prompt is a golden prompt."""
    folder = GOLDEN / "ntk_logn_fp32"
    cases = json.loads((folder / "cases.json").read_text())["cases"]
    logits = load_file(folder / "expected.safetensors")
    driver = make_driver(folder, max_model_len=320, max_num_batched_tokens=64)
    requests = [request(i, case["prompt"], max_tokens=0, num_prompt_logprobs=1) for i, case in enumerate(cases)]
    replies = driver.run(requests)
    for i, case in enumerate(cases):
        scores = replies[i].prompt_logprobs or []
        assert len(scores) == len(case["prompt"]) - 1
        assert replies[i].finish_reason == "length"
        assert replies[i].token_ids == []
        for position, row in zip(case["logit_positions"], logits[f"{case['name']}.logits"], strict=True):
            if position + 1 < len(case["prompt"]):
                expected = row.double().log_softmax(-1)
                next_id = case["prompt"][position + 1]
                assert scores[position].logprob == pytest.approx(float(expected[next_id]), abs=1e-4)
                assert scores[position].top_ids == [int(row.argmax())]


@pytest.mark.parametrize("max_num_batched_tokens", [7, 512])
@pytest.mark.parametrize(("max_tokens", "num_top"), [(0, 0), (0, 3), (4, 2)])
def test_scores_in_chunks(
    tiny_checkpoint: Path, model: LoadedModel, max_num_batched_tokens: int, max_tokens: int, num_top: int
) -> None:
    driver = make_driver(tiny_checkpoint, max_num_batched_tokens=max_num_batched_tokens)
    rng = random.Random(3)
    prompts = [random_prompt(rng, length) for length in (1, 2, 7, 8, 64, 65, 100)]
    for _ in range(2):  # the second time everything is in the prefix cache, which must not be used
        requests = [
            request(i, prompt, max_tokens=max_tokens, num_prompt_logprobs=num_top) for i, prompt in enumerate(prompts)
        ]
        replies = driver.run([*requests, request(50, prompts[-1], temperature=1.0, seed=1)])
        for i, prompt in enumerate(prompts):
            assert_scores(replies[i], expected_scores(model, prompt), prompt, num_top)
            assert replies[i].token_ids == greedy_ids(model, prompt, max_tokens)
            assert replies[i].num_cached_tokens == 0


def test_scores_of_choices(driver: Driver, model: LoadedModel) -> None:
    replies = driver.run([request((0, 1), PROMPT, num_prompt_logprobs=1, temperature=1.0, seed=1)])
    for reply in replies.values():
        assert_scores(reply, expected_scores(model, PROMPT), PROMPT, 1)


def test_scores_of_a_prefill_that_is_preempted(
    tiny_checkpoint: Path, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Important decodes grow and take the blocks of a prompt of which a part is scored already."""
    driver = make_driver(tiny_checkpoint, num_blocks=18, block_size=8, max_num_batched_tokens=12, max_model_len=130)
    preempted: list[tuple[int, int]] = []
    residents = driver.engine._scheduler.residents
    original = residents._preempt

    def preempt(seq: Any) -> None:
        preempted.append((seq.seq_id, seq.num_computed_tokens))
        original(seq)

    monkeypatch.setattr(residents, "_preempt", preempt)
    rng = random.Random(5)
    scored = random_prompt(rng, 100)
    others = [random_prompt(rng, 8) for _ in range(2)]
    driver.add(request(10 + i, prompt, -1, max_tokens=40, ignore_eos=True) for i, prompt in enumerate(others))
    driver.step()
    driver.add([request(0, scored, max_tokens=2, num_prompt_logprobs=2)])
    replies = driver.finish()
    assert any(seq_id == 0 and 0 < computed < 100 for seq_id, computed in preempted)
    assert_scores(replies[0], expected_scores(model, scored), scored, 2)
    assert replies[0].token_ids == greedy_ids(model, scored, 2)
    for i, prompt in enumerate(others):
        assert replies[10 + i].token_ids == greedy_ids(model, prompt, 40)


def test_max_tokens_0_without_scores(driver: Driver) -> None:
    reply = driver.run([request(0, PROMPT, max_tokens=0)])[0]
    assert (reply.token_ids, reply.finish_reason, reply.prompt_logprobs) == ([], "length", None)


# --- preemption and the sampler's memory


@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_preempted_replies_are_the_undisturbed_ones(tiny_checkpoint: Path, enable_prefix_caching: bool) -> None:
    """Penalties, seeds, min_tokens and log-probabilities of sequences that lose their cache again and again."""
    rng = random.Random(11)
    requests = [
        request(
            3 * i if i % 4 else (3 * i, 3 * i + 1, 3 * i + 2),
            random_prompt(rng, rng.choice([3, 30, 66])),
            max_tokens=30,
            temperature=rng.choice([0.0, 0.8, 1.2]),
            top_p=rng.choice([1.0, 0.9]),
            seed=i,
            repetition_penalty=rng.choice([1.0, 1.3]),
            frequency_penalty=rng.choice([0.0, 0.4]),
            presence_penalty=rng.choice([0.0, 0.4]),
            min_tokens=10,
            eos_token_ids=(4, 5, 6, 7),
            num_logprobs=2,
        )
        for i in range(10)
    ]
    roomy = make_driver(tiny_checkpoint, num_blocks=400, block_size=4, enable_prefix_caching=enable_prefix_caching)
    tight = make_driver(
        tiny_checkpoint,
        num_blocks=40,
        block_size=4,
        max_model_len=100,
        max_num_seqs=7,
        max_num_batched_tokens=40,
        enable_prefix_caching=enable_prefix_caching,
    )
    expected, found = roomy.run(requests), tight.run(requests)
    assert roomy.stats.num_preemptions_total == 0
    assert tight.stats.num_preemptions_total > 2
    for seq_id, reply in expected.items():
        assert found[seq_id].token_ids == reply.token_ids
        assert found[seq_id].finish_reason == reply.finish_reason
        for a, b in zip(found[seq_id].logprobs, reply.logprobs, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)


# --- aborts


def free_of(driver: Driver) -> int:
    return driver.engine._scheduler.stats().num_free_blocks


def abort_waiting(driver: Driver) -> None:
    driver.add([request(0, PROMPT), request((1, 2), PROMPT)])
    driver.engine.abort([0, 1, 2])


def abort_mid_prefill(driver: Driver) -> None:
    driver.add([request(0, [7] * 200)])
    driver.step()
    driver.step()
    assert driver.replies[0].num_cached_tokens is None
    driver.engine.abort([0])


def abort_decoding(driver: Driver) -> None:
    driver.add([request(0, PROMPT, repetition_penalty=1.2, num_prompt_logprobs=1), request(1, PROMPT)])
    for _ in range(3):
        driver.step()
    assert driver.replies[0].token_ids
    driver.engine.abort([1])
    driver.engine.abort([0])


def abort_a_follower_of_an_unfinished_prompt(driver: Driver) -> None:
    driver.add([request((0, 1, 2), [7] * 200)])
    driver.step()
    driver.engine.abort([1])
    driver.engine.abort([0, 2])


def abort_a_preempted_one(driver: Driver) -> None:
    driver.add([request(0, [1] * 100, -1, max_tokens=60), request(1, [2] * 100, max_tokens=60, presence_penalty=1.0)])
    while driver.stats.num_preemptions_total == 0:
        driver.step()
    assert driver.replies[1].token_ids
    driver.engine.abort([1, 0])


def abort_a_refused_one(driver: Driver) -> None:
    driver.add([request((0, 1), [7] * 5000)])
    driver.engine.abort([0, 1])


def abort_a_finished_one(driver: Driver) -> None:
    driver.run([request(0, PROMPT)])
    driver.engine.abort([0, 12345])


def abort_a_scored_one(driver: Driver) -> None:
    driver.add([request(0, [7] * 100, num_prompt_logprobs=3)])
    driver.step()
    driver.engine.abort([0])


@pytest.mark.parametrize(
    "begin",
    [
        abort_waiting,
        abort_mid_prefill,
        abort_decoding,
        abort_a_follower_of_an_unfinished_prompt,
        abort_a_preempted_one,
        abort_a_refused_one,
        abort_a_finished_one,
        abort_a_scored_one,
    ],
)
def test_an_abort_in_any_phase_frees_everything(tiny_checkpoint: Path, begin: Callable[[Driver], None]) -> None:
    driver = make_driver(
        tiny_checkpoint, num_blocks=60, block_size=4, max_num_batched_tokens=32, max_model_len=240, max_num_seqs=4
    )
    begin(driver)
    assert not driver.engine.has_work()
    assert free_of(driver) == 60
    driver.assert_forgotten()
    before = {seq_id: list(reply.token_ids) for seq_id, reply in driver.replies.items()}
    driver.step()
    assert {seq_id: reply.token_ids for seq_id, reply in driver.replies.items()} == before, "silent ever after"
    driver.replies = {}
    assert len(driver.run([request(100, PROMPT)])[100].token_ids) == 12


def test_followers_go_on_when_their_leader_is_aborted(driver: Driver, model: LoadedModel) -> None:
    driver.add([request((0, 1, 2), PROMPT)])
    driver.engine.abort([0])
    replies = driver.finish()
    assert replies[1].token_ids == replies[2].token_ids == greedy_ids(model, PROMPT, 12)


# --- refusals


@pytest.mark.parametrize(
    ("length", "max_tokens", "fits"), [(20, 1, False), (19, 1, True), (20, 0, True), (21, 0, False)]
)
def test_prompts_at_the_limit(tiny_checkpoint: Path, length: int, max_tokens: int, fits: bool) -> None:
    driver = make_driver(tiny_checkpoint, max_model_len=20)
    replies = driver.run([request((0, 1), [5] * length, max_tokens=max_tokens), request(2, PROMPT)])
    for seq_id in (0, 1):
        if fits:
            assert replies[seq_id].finish_reason == "length"
        else:
            assert replies[seq_id].finish_reason == "error"
            assert f"{length} tokens" in (replies[seq_id].error or "")
    assert replies[2].finish_reason == "length", "others are not disturbed"


def test_an_empty_prompt(driver: Driver) -> None:
    reply = driver.run([request(0, [])])[0]
    assert reply.finish_reason == "error"
    assert "empty" in (reply.error or "")


def test_a_prompt_longer_than_the_pool(tiny_checkpoint: Path) -> None:
    driver = make_driver(tiny_checkpoint, num_blocks=4, block_size=4)
    assert driver.engine.ready.max_model_len == 16
    replies = driver.run([request(0, [5] * 16), request(1, [5] * 15)])
    assert replies[0].finish_reason == "error"
    assert len(replies[1].token_ids) == 1


# --- a damaged checkpoint


@pytest.fixture(scope="module")
def nan_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token 7 has an embedding that is not a number."""
    folder = tmp_path_factory.mktemp("nan") / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.wte.weight"][7] = math.nan
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "top_p": 0.9}, {"num_logprobs": 2}])
def test_not_a_number_ends_its_request_and_no_other(
    nan_checkpoint: Path, model: LoadedModel, sampling: dict[str, Any]
) -> None:
    driver = make_driver(nan_checkpoint, block_size=4)
    healthy = [1, 2, 3, 4, 5, 6, 8, 9, 10]
    for round_number in range(2):  # and once more over what the prefix cache kept
        first = 100 * round_number
        replies = driver.run(
            [
                request(first, [*healthy, 7, 1], **sampling),
                request(first + 1, healthy, logit_bias=((7, -100.0),)),
                request((first + 2, first + 3), [7, *healthy], **sampling),
                request(first + 4, [*healthy, 11], temperature=1.0, seed=3, logit_bias=((7, -100.0),)),
            ]
        )
        for seq_id in (first, first + 2, first + 3):
            assert replies[seq_id].finish_reason == "error"
            assert "not a number" in (replies[seq_id].error or "")
            assert replies[seq_id].token_ids == []
        assert len(replies[first + 4].token_ids) == 12
        undisturbed = make_driver(nan_checkpoint).run([request(0, healthy, logit_bias=((7, -100.0),))])[0]
        assert replies[first + 1].token_ids == undisturbed.token_ids


@pytest.mark.parametrize("max_tokens", [0, 3])
def test_scores_that_are_not_numbers_are_an_error(nan_checkpoint: Path, max_tokens: int) -> None:
    """JSON would turn them into null."""
    driver = make_driver(nan_checkpoint, max_num_batched_tokens=8)
    prompt = [1, 2, 7, *range(10, 40)]
    reply = driver.run([request(0, prompt, max_tokens=max_tokens, num_prompt_logprobs=1)])[0]
    assert reply.finish_reason == "error"
    assert reply.prompt_logprobs is None


# --- settings


def test_what_clients_are_told(tiny_checkpoint: Path) -> None:
    ready = make_driver(tiny_checkpoint, num_blocks=100, dtype="bfloat16").engine.ready
    assert ready == EngineReady(
        max_model_len=256,
        vocab_size=300,
        num_blocks=100,
        block_size=16,
        kv_cache_bytes=100 * 2 * 2 * 2 * 16 * 16 * 2,
        weights_bytes=ready.weights_bytes,
        dtype="bfloat16",
        device="cpu",
    )
    assert ready.weights_bytes * 2 == make_driver(tiny_checkpoint).engine.ready.weights_bytes


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"kv_cache_memory_bytes": 100}, "no memory for a KV cache"),
        ({"kv_cache_memory_bytes": 1 << 16, "max_model_len": 256}, "lower it to 128 or raise --kv-cache-memory"),
        ({"kv_cache_memory_bytes": 1 << 60}, "cannot be allocated; lower --kv-cache-memory"),
        ({"kv_cache_dtype": "int4"}, "unknown dtype 'int4'"),
        ({"dtype": "float8"}, "unknown dtype 'float8'"),
        ({"device": "abacus"}, "--device 'abacus'"),
    ],
)
def test_settings_that_cannot_be_met(tiny_checkpoint: Path, changes: dict[str, Any], expected: str) -> None:
    settings = {"device": "cpu", "dtype": "float32", "kv_cache_memory_bytes": 1 << 20, **changes}
    with pytest.raises(ConfigError) as e:
        Engine(EngineConfig(checkpoint_path=str(tiny_checkpoint), **settings))
    assert expected in str(e.value)
    assert "\n" not in str(e.value)


def test_a_small_pool_shortens_the_default_context(tiny_checkpoint: Path) -> None:
    assert make_driver(tiny_checkpoint, num_blocks=5).engine.ready.max_model_len == 80
    assert make_driver(tiny_checkpoint, num_blocks=16).engine.ready.max_model_len == 256
    assert make_driver(tiny_checkpoint, num_blocks=40, max_model_len=500).engine.ready.max_model_len == 500


# --- state over time


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_steps_leave_no_tensors_to_the_collector(tiny_checkpoint: Path, kernels: str) -> None:
    """What is part of a cycle stays on the device until Python's collector happens to run."""
    driver = make_driver(tiny_checkpoint, kernels=kernels)
    driver.add([request((0, 1), PROMPT * 3, num_logprobs=2, num_prompt_logprobs=1), request(2, PROMPT, top_p=0.5)])
    gc.collect()
    gc.disable()
    try:
        for _ in range(4):
            driver.step()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [found.shape for found in gc.garbage if isinstance(found, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not left


@pytest.mark.parametrize("seed", range(3))
def test_a_crowd_that_comes_and_goes(tiny_checkpoint: Path, seed: int) -> None:
    """Random requests, random aborts; stats agree with what is seen, everything ends, nothing stays."""
    rng = random.Random(seed)
    driver = make_driver(
        tiny_checkpoint, num_blocks=30, block_size=8, max_num_seqs=6, max_num_batched_tokens=24, max_model_len=100
    )
    next_id = num_steps = 0
    alive: set[int] = set()
    totals = EngineStats()
    for _ in range(90):
        for _ in range(rng.choice([0, 0, 1, 2])):
            count = rng.choice([1, 1, 1, 3])
            seq_ids = tuple(range(next_id, next_id + count))
            next_id += count
            sampling = {
                "max_tokens": rng.choice([0, 1, 8, 30]),
                "temperature": rng.choice([0.0, 1.0]),
                "repetition_penalty": rng.choice([1.0, 1.1]),
                "num_prompt_logprobs": rng.choice([None, None, 0]),
                "num_logprobs": rng.choice([None, 1]),
                "eos_token_ids": (1, 2, 3),
            }
            prompt = random_prompt(rng, rng.choice([1, 5, 40, 98, 101]))
            driver.add([request(seq_ids, prompt, rng.choice([0, 0, 1]), **sampling)])
            alive |= set(seq_ids)
        if alive and rng.random() < 0.2:
            doomed = rng.sample(sorted(alive), rng.randrange(1, len(alive) + 1))
            driver.engine.abort(doomed)
            alive -= set(doomed)
        driver.step()
        num_steps += driver.stats.num_step_tokens > 0
        alive -= {seq_id for seq_id, reply in driver.replies.items() if reply.finish_reason is not None}
        stats = driver.stats
        assert stats.num_running + stats.num_waiting == len(alive)
        assert stats.num_running <= 6
        assert stats.num_step_tokens <= 24
        assert stats.num_steps_total == num_steps
        assert 0 <= stats.num_cached_blocks <= stats.num_free_blocks <= stats.num_blocks == 30
        assert stats.prefix_cache_hits_total <= stats.prefix_cache_queries_total
        assert stats.num_preemptions_total >= totals.num_preemptions_total
        totals = stats
    replies = driver.finish()
    finished = {seq_id for seq_id, reply in replies.items() if reply.finish_reason is not None}
    assert alive <= finished
