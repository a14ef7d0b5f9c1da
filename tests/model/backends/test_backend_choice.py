"""Which backend serves which device, what it says of itself, and that the torch path serves devices of any age."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import model.backends
from model.backends import make_backend
from model.backends.torch_backend import TorchBackend
from model.backends.torch_device_backend import TorchDeviceBackend
from model.contract.errors import ConfigError
from tests.support.engine_driver import Driver, make_driver
from tests.support.golden import FOLDERS, assert_golden, greedy_requests, read_cases
from tests.support.paths import GOLDEN

CPU = torch.device("cpu")


class FakeDevice:
    """What torch says of a CUDA device that is not there; its tensors are the CPU's."""

    def __init__(self, patch: pytest.MonkeyPatch, capability: tuple[int, int], hip: str | None = None) -> None:
        self.made: list[TorchDeviceBackend] = []
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
        patch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: hip is not None)
        patch.setattr(torch.cuda, "get_arch_list", list)
        patch.setattr(torch.version, "hip", hip)

        def make(device: torch.device, *, has_bfloat16: bool) -> TorchDeviceBackend:
            assert device == torch.device("cuda", 0)
            self.made.append(TorchDeviceBackend(CPU, has_bfloat16=has_bfloat16))
            return self.made[-1]

        patch.setattr(model.backends, "TorchDeviceBackend", make)


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    return FakeDevice(monkeypatch, (7, 5))


def no_triton(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(model.backends, "cuda", None, raising=False)  # put back afterwards, with all that is in it
    prefixes = ("triton", "model.backends.cuda")
    for name in [name for name in sys.modules if name.startswith(prefixes)]:
        patch.delitem(sys.modules, name)
    patch.setitem(sys.modules, "triton", None)


CASES: list[tuple[Callable[[pytest.MonkeyPatch], object], str, str, str, str]] = [
    (lambda patch: FakeDevice(patch, (7, 5)), "auto", "capability 7.5 is below the 8.0", "float16", "bfloat16"),
    (lambda patch: FakeDevice(patch, (7, 0)), "auto", "capability 7.0 is below the 8.0", "float16", "bfloat16"),
    (lambda patch: FakeDevice(patch, (9, 0)), "torch", "--kernels torch", "bfloat16", "bfloat16"),
    (lambda patch: FakeDevice(patch, (9, 0), "6.4"), "auto", "never run on ROCm", "bfloat16", "bfloat16"),
    (lambda patch: FakeDevice(patch, (7, 5)), "auto", "capability 7.5", "float32", "float32"),
    (lambda patch: FakeDevice(patch, (9, 0), "6.4"), "auto", "never run on ROCm", "float16", "float16"),
]


@pytest.mark.parametrize(("make", "kernels", "reason", "dtype", "declared"), CASES)
def test_torch_serves_what_our_kernels_do_not(
    make: Callable[[pytest.MonkeyPatch], object],
    kernels: str,
    reason: str,
    dtype: str,
    declared: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Said in one line."""
    make(monkeypatch)
    backend = make_backend("auto", kernels)
    assert isinstance(backend, TorchDeviceBackend)
    assert len(caplog.records) == 1
    assert "torch's operations serve on cuda:0 (Tesla T4)" in caplog.text
    assert reason in caplog.text
    assert backend.resolve_dtype("auto", declared) == getattr(torch, dtype)


def test_without_triton_torch_serves_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    FakeDevice(monkeypatch, (9, 0))
    no_triton(monkeypatch)
    backend = make_backend("cuda:0")
    assert isinstance(backend, TorchDeviceBackend)
    assert "Triton is not installed (pip install 'qwen-server[cuda]')" in caplog.text
    assert backend.resolve_dtype("auto", "bfloat16") == torch.bfloat16


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.usefixtures("old")
def test_replies_that_depend_on_the_company_are_not_promised_away(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="--batch-invariant: torch's products depend"):
        make_backend(device, "torch", batch_invariant=True)
    if device == "cuda":
        with pytest.raises(ConfigError, match=r"compute capability 7\.5"):
            make_backend(device, batch_invariant=True)
        return
    monkeypatch.setattr(model.backends, "row_functions", lambda dtype: object())
    assert isinstance(make_backend(device, batch_invariant=True), TorchBackend)
    with pytest.raises(ConfigError, match="float16"):
        make_driver(GOLDEN / FOLDERS[0], dtype="float16", batch_invariant=True)


@pytest.mark.parametrize(
    ("device", "kernels", "message"),
    [
        ("cuda", "triton", "--kernels triton: compute capability 7.5 is below"),
        ("cpu", "triton", "--kernels triton: a CPU has none"),
        ("cuda:1", "auto", "--device cuda:1: there are only 1 CUDA devices"),
        ("xpu", "auto", "--device xpu: this torch sees no XPU device"),
        ("mps", "auto", "--device mps: this torch sees no Apple GPU"),
        ("mps:0", "auto", "is not one of auto, cpu, cuda, cuda:N, xpu, xpu:N, mps"),
        ("tpu", "auto", "is not one of"),
        ("cpu:x", "auto", "is not one of"),
    ],
)
@pytest.mark.usefixtures("old")
def test_what_cannot_be_met_is_refused(device: str, kernels: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        make_backend(device, kernels)


@pytest.mark.parametrize(
    ("capability", "built_for", "is_served"),
    [
        ((6, 0), ["sm_75", "sm_80", "sm_90", "compute_90"], False),
        ((7, 0), ["sm_75", "sm_80"], False),
        ((7, 5), ["sm_75", "sm_80"], True),
        ((8, 9), ["sm_80", "sm_90"], True),
        ((8, 0), ["sm_86"], False),
        ((12, 0), ["sm_80", "sm_90a"], False),
        ((12, 0), ["sm_80", "compute_90"], True),
        ((10, 3), ["sm_100", "sm_120"], True),
    ],
)
def test_a_torch_that_was_built_for_other_devices(
    capability: tuple[int, int], built_for: list[str], is_served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheels of CUDA 13 left V100 and P100 out: without a word their first operation would end the start."""
    FakeDevice(monkeypatch, capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built_for)
    if is_served:
        assert isinstance(make_backend("cuda", "torch"), TorchDeviceBackend)
    else:
        with pytest.raises(ConfigError, match=r"--device cuda: torch .* was built for sm_.*install another build"):
            make_backend("cuda", "torch")


@pytest.mark.usefixtures("old")
def test_bfloat16_is_refused_where_the_device_lacks_it() -> None:
    backend = make_backend("cuda")
    with pytest.raises(ConfigError, match=r"--dtype bfloat16: .* use float16 or float32"):
        backend.resolve_dtype("bfloat16", None)
    assert backend.resolve_dtype("float32", "bfloat16") == torch.float32


def drive(folder: Path, **changes: Any) -> Driver:
    return make_driver(folder, **{"device": "auto", "max_model_len": 320, "num_blocks": 200, **changes})


@pytest.mark.parametrize("folder", FOLDERS)
def test_golden_on_an_old_device(folder: str, old: FakeDevice) -> None:
    """The published code's tokens through torch's operations and gathered keys: chunks, prefixes, mixed steps."""
    cases = read_cases(folder)
    driver = drive(GOLDEN / folder, max_num_batched_tokens=96)
    assert driver.engine._runner.worker.backend is old.made[0]
    assert_golden(cases, driver.run(greedy_requests(cases)))
    assert_golden(cases, driver.run(greedy_requests(cases, 100)))


def test_a_bfloat16_checkpoint_runs_in_float16_there(old: FakeDevice) -> None:
    """Its weights have 8 bits, so float16 loses nothing of them: most tokens are those of float32."""
    cases = read_cases("first_release_names_bf16")
    driver = drive(GOLDEN / "first_release_names_bf16", dtype="auto")
    assert driver.engine._runner.worker.loaded.dtype == torch.float16
    assert driver.engine.ready.dtype == "float16"
    replies = driver.run(greedy_requests(cases))
    first = [replies[i].token_ids[0] == case.greedy[0] for i, case in enumerate(cases)]
    assert all(first)


def test_int8_cache_and_quantised_weights_there(old: FakeDevice) -> None:
    """In float16 a 4-bit weight stays packed, and the cache int8: the first tokens are still the published ones."""
    cases = read_cases("gptq_int4")
    driver = drive(GOLDEN / "gptq_int4", dtype="float16", kv_cache_dtype="int8")
    replies = driver.run(greedy_requests(cases))
    assert [replies[i].token_ids[0] for i in range(len(cases))] == [case.greedy[0] for case in cases]


def test_weights_beyond_float16_are_refused_by_name(
    old: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A product that overflows in one layer, though its weights fit."""
    prepare = TorchDeviceBackend.prepare_linear
    num_linears = 0

    def grown(self: TorchDeviceBackend, weight: torch.Tensor, bias: Any, **rest: Any) -> Any:
        nonlocal num_linears
        num_linears += 1
        if weight.shape[0] == 3 * weight.shape[1] and num_linears > 3:
            weight = weight.sign() * 60_000
        return prepare(self, weight, bias, **rest)

    monkeypatch.setattr(TorchDeviceBackend, "prepare_linear", grown)
    with pytest.raises(ConfigError, match=r"transformer\.h\.\d\.attn\.c_attn overflow float16 .* --dtype float32"):
        drive(GOLDEN / "first_release_names_bf16", dtype="auto")


def test_torch_alone_on_a_cpu(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel of ours is compiled, and quantised weights are expanded."""

    def compiled(*arguments: object) -> None:
        raise AssertionError("a kernel of ours was wanted")

    monkeypatch.setattr("model.backends.cpu.jit._compile", compiled)
    for name in ("ntk_logn_fp32", "gptq_int8"):
        case = read_cases(name)[0]
        driver = make_driver(GOLDEN / name, max_model_len=320, kernels="torch")
        assert type(driver.engine._runner.worker.backend) is TorchBackend
        assert_golden([case], driver.run(greedy_requests([case])))
