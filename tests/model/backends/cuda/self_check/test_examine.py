"""The doctor's look at the Triton kernels, in the interpreter: every call it would time is one that runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from model.backends.cuda.operations import KERNELS
from model.backends.cuda.self_check import examine as module
from model.backends.cuda.self_check.examine import examine
from model.backends.cuda.self_check.trials import TRIALS
from model.backends.cuda.self_check.workloads import Sizes
from model.backends.exam import KernelExam
from tests.model.backends.cuda.self_check.test_self_check import SHAPE, broken, fails

SIZES = Sizes(num_tokens=3, num_seqs=2, context=9, inner_size=24, vocab_size=300)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the native ones")


def once(run: Callable[[], object]) -> float:
    run()
    return 7.0


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = {name: trial._replace(sizes=trial.sizes[:1]) for name, trial in TRIALS.items()}
    monkeypatch.setattr(module, "trials_for", lambda shape: trials)


def test_all_kernels_are_timed_beside_what_bounds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only timed: test_self_check.py tries them."""
    monkeypatch.setattr(module, "try_kernel", lambda name, *rest: KernelExam(name, 0.0, 0.0))
    exams = {exam.name: exam for exam in examine(SHAPE, SIZES, once)}
    assert list(exams) == list(KERNELS)
    for name, exam in exams.items():
        assert exam.failure is None
        assert (exam.time_us, exam.num_bytes > 0) == ((None, False) if name == "make_decode_inputs" else (7.0, True))
        assert (exam.num_flops > 0) == (name in ("prefill_attention", "gptq_many_rows"))
    assert exams["silu_mul"].num_bytes == 3 * 3 * 24 * 4
    assert exams["row_matmul"].num_bytes == 2 * 24 * SHAPE.hidden_size * 4
    assert exams["decode_attention"].num_bytes == 2 * 9 * 2 * 2 * 16 * 4
    assert exams["silu_mul"].limit_us(864.0, 1.0) == 1e6
    assert exams["prefill_attention"].limit_us(1e30, float(exams["prefill_attention"].num_flops)) == 1e6


def test_with_an_int8_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: TRIALS[name] for name in ("rotate_and_cache", "decode_attention", "prefill_attention")}
    few = {name: trial._replace(sizes=trial.sizes[:1]) for name, trial in few.items()}
    monkeypatch.setattr(module, "trials_for", lambda shape: few)
    exams = examine(dataclasses.replace(SHAPE, cache_dtype=torch.int8), SIZES, once)
    assert [(exam.failure, exam.time_us) for exam in exams] == [(None, 7.0)] * 3
    assert exams[1].num_bytes == 2 * 9 * 2 * 2 * (16 + 4)


def test_kernels_that_fail_when_tried_and_in_service(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = {name: TRIALS[name] for name in ("rms_norm", "silu_mul", "row_matmul")}
    monkeypatch.setattr(module, "trials_for", lambda shape: quick)
    monkeypatch.setitem(KERNELS, "rms_norm", broken("rms_norm", "wrong"))
    silu_mul = KERNELS["silu_mul"]

    def only_small(gate: torch.Tensor, up: torch.Tensor) -> Any:
        if gate.shape[1] == SIZES.inner_size:
            raise RuntimeError("Triton Error [CUDA]: invalid argument")
        return silu_mul(gate, up)

    monkeypatch.setitem(KERNELS, "silu_mul", only_small)
    exams = {exam.name: exam for exam in examine(SHAPE, SIZES, once)}
    assert exams["rms_norm"].time_us is None
    assert "off by" in str(exams["rms_norm"].failure)
    assert "in a size of its service: RuntimeError: Triton Error" in str(exams["silu_mul"].failure)
    assert exams["row_matmul"].failure is None


def test_after_a_device_is_broken_the_rest_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = {name: TRIALS[name] for name in ("rms_norm", "silu_mul")}
    monkeypatch.setattr(module, "trials_for", lambda shape: quick)
    monkeypatch.setitem(KERNELS, "rms_norm", fails(torch.AcceleratorError("an illegal memory access")))
    monkeypatch.setattr("model.backends.cuda.device_faults.torch.ones", fails(torch.AcceleratorError("an illegal")))
    exams = examine(SHAPE, SIZES, once)
    assert "breaks the device" in str(exams[0].failure)
    assert exams[1].failure == "not tried: rms_norm broke the device"
