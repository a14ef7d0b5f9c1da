"""The self-check on a device that compiles: whole kernels pass as checkpoints have them, broken ones stop nothing."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from model.backends.cuda.device_faults import relative_error
from model.backends.cuda.notes import Notes, device_notes
from model.backends.cuda.operations import KERNELS, TORCH, Operations
from model.backends.cuda.self_check.check import check_kernels, try_kernel
from model.backends.cuda.self_check.inputs import KernelShape
from model.backends.cuda.self_check.trials import TRIALS, trials_for
from tests.gpu.on_gpu import drive
from tests.support.golden import assert_golden, greedy_requests, read_cases
from tests.support.paths import GOLDEN

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def shape(dtype: torch.dtype, cache_dtype: torch.dtype, head_dim: int = 128, **changes: Any) -> KernelShape:
    heads = 32
    settings: dict[str, Any] = {"rotary_dim": head_dim, "hidden_size": heads * head_dim, "block_size": 16}
    settings |= {"vocab_size": 151936, **changes}
    return KernelShape(torch.device("cuda"), dtype, cache_dtype, heads, head_dim, **settings)


SHAPES = [
    *(shape(dtype, cache) for dtype in DTYPES for cache in (dtype, torch.int8)),
    shape(torch.bfloat16, torch.bfloat16, 64, block_size=1),
    *(
        shape(dtype, dtype, bits=bits, group_size=group_size)
        for dtype, bits, group_size in itertools.product(DTYPES[:2], (4, 8), (128, 32, -1))
    ),
]


@pytest.mark.parametrize("configuration", SHAPES, ids=str)
def test_every_kernel_agrees(configuration: KernelShape) -> None:
    trials = trials_for(configuration).items()
    findings = [try_kernel(name, KERNELS[name], trial, configuration) for name, trial in trials]
    assert not [finding for finding in findings if finding.failure is not None]


@triton.jit
def _does_not_compile(out_ptr, BLOCK: tl.constexpr):
    x = tl.load(out_ptr + tl.arange(0, BLOCK))
    x = tl.inline_asm_elementwise("no.such.thing $0, $1;", "=r,r", [x], tl.int32, True, 1)
    tl.store(out_ptr + tl.arange(0, BLOCK), x)


@triton.jit
def _takes_too_much(out_ptr, BLOCK: tl.constexpr):
    places = tl.arange(0, BLOCK)
    x = tl.load(out_ptr + places[:, None] * BLOCK + places[None, :])
    tl.store(out_ptr + places[:, None] * BLOCK + places[None, :], tl.dot(x, x).to(tl.bfloat16))


def does_not_compile(x: torch.Tensor, *rest: Any) -> torch.Tensor:
    _does_not_compile[(1,)](torch.empty(16, dtype=torch.int32, device="cuda"), 16)
    return x


def takes_too_much(x: torch.Tensor, *rest: Any) -> torch.Tensor:
    _takes_too_much[(1,)](torch.empty(256 * 256, dtype=torch.bfloat16, device="cuda"), 256)
    return x


@pytest.mark.parametrize("broken", [does_not_compile, takes_too_much])
def test_what_a_compiler_or_a_driver_refuses_is_replaced(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real exceptions; the device works on, and so do the other kernels."""
    monkeypatch.setitem(KERNELS, "silu_mul", broken)
    operations = Operations(torch.device("cuda"))
    check_kernels(operations, SHAPES[0], Notes(None), must_pass=False)
    assert list(operations.replaced) == ["silu_mul"]
    print(operations.replaced)


@pytest.mark.parametrize("folder", ["ntk_logn_fp32", "gptq_int4"])
def test_golden_replies_when_torch_does_everything(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All kernels replaced: what each is replaced by is right on this device too, in float32."""
    for name in KERNELS:
        monkeypatch.setitem(KERNELS, name, does_not_compile)
    cases = read_cases(folder)
    driver = drive(GOLDEN / folder, num_blocks=400, max_num_batched_tokens=96)
    backend: Any = driver.engine._runner.worker.backend
    assert set(backend.operations.replaced) >= set(TORCH) - {"gptq_one_row", "gptq_few_rows", "gptq_many_rows"}
    assert_golden(cases, driver.run(greedy_requests(cases)))


def test_two_starts_choose_the_same_products(tiny_checkpoint: Path) -> None:
    """And they name the same notes, in which the shapes stand."""
    chosen = []
    for _ in range(2):
        backend: Any = drive(tiny_checkpoint, dtype="bfloat16").engine._runner.worker.backend
        chosen.append(frozenset(backend._linears._ours))
        assert backend._notes.path == device_notes(torch.device("cuda")).path
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize("name", ["decode_attention", "prefill_attention"])
def test_attention_in_torch_at_length(name: str) -> None:
    """What stands in for attention is right in half precision where torch has kernels of its own."""
    for dtype in DTYPES:
        trial = TRIALS[name]
        size = trial.sizes[-1]
        ours, theirs = (trial.run(operation, shape(dtype, dtype), size) for operation in (KERNELS[name], TORCH[name]))
        assert relative_error(theirs[0], ours[0]) < 2e-2
