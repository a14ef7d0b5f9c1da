"""Kernels that fail to compile, to start or to agree are replaced one by one, and the replies stay right."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources

from model.backends.cuda import operations
from model.backends.cuda.device_faults import BrokenDeviceError, relative_error
from model.backends.cuda.notes import Notes
from model.backends.cuda.operations import KERNELS, TORCH, Operations
from model.backends.cuda.self_check import sampling_trial
from model.backends.cuda.self_check.check import check_kernels, try_kernel
from model.backends.cuda.self_check.inputs import KernelShape
from model.backends.cuda.self_check.trials import TRIALS, trials_for
from model.backends.exam import KernelExam
from model.contract.errors import ConfigError, RestartNeededError
from model.contract.sampling_params import SamplingParams
from model.sampling.sampling_row import SamplingRow
from tests.model.backends.cuda.fakes import CPU, InterpretedBackend
from tests.model.backends.cuda.kernels.test_sampling_kernel import expected_token
from tests.support.engine_driver import make_driver
from tests.support.golden import assert_golden, greedy_requests, read_cases
from tests.support.paths import GOLDEN

SHAPE = KernelShape(
    device=CPU, dtype=torch.float32, cache_dtype=torch.float32, num_heads=2, head_dim=16, rotary_dim=8, hidden_size=48,
    vocab_size=4200, block_size=4, bits=4, group_size=32,
)  # fmt: skip
NO_NOTES = Notes(None)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the native ones")


def finding(name: str, shape: KernelShape = SHAPE) -> KernelExam:
    return try_kernel(name, KERNELS[name], TRIALS[name], shape)


def off_by(kernel: Callable[..., Any], change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    """The kernel, one of whose numbers comes out otherwise: in its result, or in what it was given to write to."""

    def spoil(x: torch.Tensor) -> None:
        x.view(-1)[-1:] = change(x.view(-1)[-1:])

    def wrong(*arguments: Any, **options: Any) -> Any:
        result = kernel(*arguments, **options)
        spoil(arguments[4] if result is None else result if isinstance(result, torch.Tensor) else result[0])
        return result

    return wrong


def fails(error: Exception) -> Callable[..., Any]:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise error

    return fail


def broken(name: str, how: str) -> Callable[..., Any]:
    match how:
        case "compile":
            return fails(CompilationError("x = tl.load(p)", None, "no such intrinsic on this device"))
        case "launch":
            return fails(OutOfResources(300_000, 101_376, "shared memory"))
        case "wrong":
            return off_by(KERNELS[name], lambda x: x + 1)
        case _:
            return off_by(KERNELS[name], lambda x: x * float("nan") if x.is_floating_point() else x - 1)


@pytest.mark.parametrize("name", sorted(set(KERNELS) - {"sample_rows", "gptq_few_rows", "prefill_attention"}))
def test_kernels_agree_with_torch_in_half_precision(name: str) -> None:
    """An int8 cache, 8 bits in one group: what SHAPE has not. Slow kernels run in full precision alone, below."""
    shape = dataclasses.replace(
        SHAPE, dtype=torch.bfloat16, cache_dtype=torch.int8, bits=8, group_size=-1, has_windows=True
    )
    assert finding(name, shape).failure is None


@pytest.mark.parametrize("how", ["compile", "launch", "wrong", "nan"])
def test_a_broken_kernel_is_the_only_one_replaced(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """Each of the quick ones in turn; the others stay."""
    expected = {"compile": "no such intrinsic", "launch": "shared memory", "wrong": "off by", "nan": "off by"}[how]
    for name in QUICK:
        trial = {name: TRIALS[name]}
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(KERNELS, name, broken(name, how))
            patch.setattr("model.backends.cuda.self_check.check.trials_for", lambda shape, trial=trial: trial)
            in_use = Operations(CPU)
            check_kernels(in_use, SHAPE, NO_NOTES, must_pass=False)
        assert list(in_use.replaced) == [name]
        assert in_use[name] is TORCH[name]
        assert all(in_use[other] is not TORCH.get(other) for other in KERNELS if other != name)
        line = caplog.records[-1].getMessage()
        assert f"the kernel {name} fails on this device: " in line
        assert expected in line


QUICK = ("rms_norm", "silu_mul", "rotate_and_cache", "make_decode_inputs", "row_matmul", "gptq_one_row")


def test_whole_kernels_are_left_alone(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """In the odd sizes; other tests have the small ones, and sampling from a whole vocabulary."""
    odd = {name: trial._replace(sizes=trial.sizes[-1:]) for name, trial in trials_for(SHAPE).items()}
    odd["sample_rows"] = odd["sample_rows"]._replace(sizes=(300,))
    monkeypatch.setattr("model.backends.cuda.self_check.check.trials_for", lambda shape: odd)
    caplog.set_level("INFO")
    in_use = Operations(CPU)
    check_kernels(in_use, SHAPE, NO_NOTES, must_pass=True)
    assert not in_use.replaced
    assert f"{len(odd)} kernels checked" in caplog.text
    assert "all agree" in caplog.text


def test_a_wrong_token_is_found() -> None:
    """One id is off by one: no tolerance for numbers may hide that."""
    wrong = off_by(KERNELS["sample_rows"], lambda ids: ids + 1)
    result = try_kernel("sample_rows", wrong, TRIALS["sample_rows"]._replace(sizes=(300,)), SHAPE)
    assert result.failure is not None


@pytest.mark.parametrize("vocab_size", [2, 300, 4352, 60_000, 151_936, 152_064])
def test_draws_of_the_trial_are_far_from_their_neighbours(vocab_size: int) -> None:
    """In any vocabulary the expected token is one that the filters keep, by a share that rounding cannot miss."""
    for seed in range(4):
        logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed)) * 3
        for temperature, top_k, top_p, min_p in sampling_trial.SAMPLING[1:]:
            token, draw = sampling_trial.middle_of_a_share(logits, temperature, top_k, top_p, min_p)
            for moved in (draw - 4e-4, draw, draw + 4e-4):
                assert expected_token(logits, temperature, top_k, top_p, min_p, moved)[0] == token


def test_forcing_triton_refuses_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KERNELS, "silu_mul", broken("silu_mul", "wrong"))
    quick = {name: TRIALS[name] for name in ("rms_norm", "silu_mul")}
    monkeypatch.setattr("model.backends.cuda.self_check.check.trials_for", lambda shape: quick)
    with pytest.raises(ConfigError, match=r"--kernels triton: .*silu_mul: it is off by .*; use --kernels auto"):
        check_kernels(Operations(CPU), SHAPE, NO_NOTES, must_pass=True)


def test_unquantised_checkpoints_try_no_quantised_kernel() -> None:
    assert not any(name.startswith("gptq") for name in trials_for(dataclasses.replace(SHAPE, bits=None)))
    assert not any(name.startswith("gptq") for name in trials_for(dataclasses.replace(SHAPE, group_size=24)))
    assert set(trials_for(SHAPE)) == set(KERNELS)


def test_what_broke_the_device_is_left_out_of_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    quick = {name: TRIALS[name] for name in ("rms_norm", "silu_mul")}
    monkeypatch.setattr("model.backends.cuda.self_check.check.trials_for", lambda shape: quick)
    monkeypatch.setitem(KERNELS, "rms_norm", fails(torch.AcceleratorError("an illegal memory access")))
    notes = Notes(tmp_path / "cache" / "notes.json")
    ones = torch.ones

    def dead(*arguments: Any, **options: Any) -> torch.Tensor:
        raise torch.AcceleratorError("an illegal memory access")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "ones", dead)
        with pytest.raises(BrokenDeviceError):
            check_kernels(Operations(CPU), SHAPE, NO_NOTES, must_pass=False)
        with pytest.raises(RestartNeededError, match=r"rms_norm broke the device .*illegal memory access"):
            check_kernels(Operations(CPU), SHAPE, notes, must_pass=False)
    assert torch.ones is ones
    monkeypatch.setitem(KERNELS, "rms_norm", fails(AssertionError("tried again")))
    in_use = Operations(CPU)
    check_kernels(in_use, SHAPE, notes, must_pass=False)
    assert list(in_use.replaced) == ["rms_norm"]
    assert "illegal memory access (in an earlier start; noted in" in caplog.text


def test_a_kernel_that_fails_in_service_is_replaced_there_and_then(caplog: pytest.LogCaptureFixture) -> None:
    """In a size that was not tried; the call that failed gets torch's result."""
    silu_mul, calls = KERNELS["silu_mul"], []

    def only_small(gate: torch.Tensor, up: torch.Tensor) -> Any:
        calls.append(len(gate))
        if len(gate) > 5:
            raise OutOfResources(300_000, 101_376, "shared memory")
        return silu_mul(gate, up)

    x = torch.randn(9, 16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KERNELS, "silu_mul", only_small)
        in_use, strict = Operations(CPU), Operations(CPU, may_replace=False)
    in_use["silu_mul"](x[:3], x[:3])
    assert not in_use.replaced
    for _ in range(2):
        assert torch.equal(in_use["silu_mul"](x, x), TORCH["silu_mul"](x, x))
    assert calls == [3, 9]
    assert list(in_use.replaced) == ["silu_mul"]
    assert "the kernel silu_mul fails in service; torch does its work: OutOfResources" in caplog.text
    with pytest.raises(OutOfResources):
        strict["silu_mul"](x, x)


@pytest.mark.parametrize("state", ["recording", "dead", "no memory"])
def test_what_cannot_be_mended_in_service_is_raised(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error = torch.OutOfMemoryError("no memory") if state == "no memory" else RuntimeError("Triton Error [CUDA]")
    monkeypatch.setitem(KERNELS, "silu_mul", fails(error))
    in_use = Operations(CPU)
    monkeypatch.setattr(operations, "is_recording", lambda device: state == "recording")
    monkeypatch.setattr(operations, "is_alive", lambda device: state != "dead")
    with pytest.raises(type(error)):
        in_use["silu_mul"](torch.zeros(2, 2), torch.zeros(2, 2))
    assert not in_use.replaced


def test_sampling_that_fails_in_service_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KERNELS, "sample_rows", broken("sample_rows", "launch"))
    backend = InterpretedBackend(CPU)
    rows = [SamplingRow(0, SamplingParams(max_tokens=2, temperature=0.0), [1], 1, 0)]
    assert backend.sample_tokens is not None
    for _ in range(2):
        ids, is_valid = backend.sample_tokens(torch.eye(300)[7:8], rows)
        assert (ids.tolist(), is_valid.tolist()) == ([7], [True])


def test_notes_that_were_kept_first_stay(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    one, other = Notes(path), Notes(path)
    assert one.keep("a", "x", [1.0, 2.0]) == [1.0, 2.0]
    assert other.keep("a", "x", [3.0, 4.0]) == [1.0, 2.0]
    assert other.keep("b", "x", 5) == 5
    assert one.read("a", "x") == [1.0, 2.0] and one.read("b", "x") == 5 and one.read("b", "y") is None
    for text in ("{", "[]", json.dumps({"a": 3})):
        path.write_text(text)
        assert one.read("a", "x") is None
    assert one.keep("a", "x", 7) == 7


@pytest.mark.parametrize(
    ("found", "expected", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 3.0], [1.0, 2.0], 0.5),
        ([float("nan")], [1.0], float("inf")),
        ([1.0], [float("nan")], float("inf")),
        ([float("nan"), 1.0], [float("nan"), 1.0], 0.0),
        ([float("inf")], [float("inf")], 0.0),
        ([float("inf"), 1.0], [1.0, 1.0], float("inf")),
        ([], [], 0.0),
    ],
)
def test_relative_error(found: list[float], expected: list[float], error: float) -> None:
    assert relative_error(torch.tensor(found), torch.tensor(expected)) == error


ALL_BUT_DECODES = {
    "rms_norm": "compile",
    "silu_mul": "launch",
    "rotate_and_cache": "nan",
    "prefill_attention": "wrong",
    "make_decode_inputs": "wrong",
    "sample_rows": "compile",
}


# Rows of a recorded step that nobody uses hold anything. A GPU says nothing of what comes of it, the interpreter does.
@pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning")
@pytest.mark.parametrize(
    ("folder", "how", "has_graphs"),
    [
        ("ntk_logn_fp32", ALL_BUT_DECODES, True),
        ("ntk_logn_fp32", {"decode_attention": "launch"}, False),
        ("gptq_int4_asym_desc_act", {f"gptq_{n}": "nan" for n in ("one_row", "few_rows", "many_rows")}, True),
    ],
    ids=["all but decode attention", "decode attention", "gptq"],
)
def test_golden_replies_with_broken_kernels(
    folder: str, how: dict[str, str], has_graphs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published code's tokens through the engine, whichever of the kernels torch stands in for."""
    for name in how:
        monkeypatch.setitem(operations.KERNELS, name, broken(name, how[name]))
    backend = InterpretedBackend(CPU)
    monkeypatch.setattr("model.execution.model_loader.make_backend", lambda *arguments, **options: backend)
    small = {name: TRIALS[name]._replace(sizes=TRIALS[name].sizes[:1]) for name in how}
    monkeypatch.setattr("model.backends.cuda.self_check.check.trials_for", lambda shape: small)
    monkeypatch.setattr("model.execution.worker.Worker._warm_up", lambda self: None)
    case = min(read_cases(folder), key=lambda case: len(case.prompt))
    cases = [dataclasses.replace(case, greedy=case.greedy[:3], greedy_logprobs=case.greedy_logprobs[:3])]
    driver = make_driver(GOLDEN / folder, num_blocks=20, max_model_len=80, max_num_seqs=1, max_num_batched_tokens=16)
    assert set(backend.operations.replaced) == set(how)
    assert_golden(cases, driver.run(greedy_requests(cases)))
    assert bool(backend.recorder.replayed) == has_graphs
