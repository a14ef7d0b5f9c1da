"""What the doctor says of a report, of this machine, and of machines that are not well."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from model.backends.cpu import exam as cpu_exam
from model.backends.cpu.exam import examine_cpu
from model.backends.devices import find_device
from model.contract.config import ModelConfig
from tools.doctor import __main__ as doctor
from tools.doctor import facts, limits
from tools.doctor.advice import advise
from tools.doctor.text import as_text
from tools.memory.published_shapes import published_shape

SHAPE = ModelConfig(
    vocab_size=300, hidden_size=128, num_layers=2, num_heads=2, head_dim=64, intermediate_size=512, seq_length=64,
    rotary_base=1e4, rotary_dim=64, layer_norm_epsilon=1e-6, use_dynamic_ntk=True, use_logn_attn=True, has_bias=False,
    declared_dtype="bfloat16", quantization=None,
)  # fmt: skip
GIB = 1 << 30
BIG = 64 << 20

KERNEL = {
    "name": "rms_norm", "failure": None, "error": 1e-3, "tolerance": 4e-2, "time_us": 100.0, "bytes": BIG, "flops": 0,
    "limit_us": 90.0, "share": 0.9,
}  # fmt: skip
GPU = {
    "device": "cuda:0", "name": "cuda:0 (H100)", "no_kernels": None, "failure": None, "free_bytes": 79 * GIB,
    "memory_bytes": 80 * GIB, "compute_capability": "9.0", "num_multiprocessors": 132, "L2_bytes": 50 << 20,
}  # fmt: skip
ON_A_GPU: dict[str, Any] = {
    "versions": {
        "torch": "2.13.0", "triton": "3.7.1", "llvmlite": "0.5", "CUDA of torch": "13.0", "NVIDIA driver": "580.1",
        "C compiler": "gcc 13",
    },
    "machine": {
        "system": "Linux", "processor": "x", "instruction_sets": ["avx2"], "num_cores": 4, "num_usable_cores": 4.0,
        "num_torch_threads": 4, "load_average": 0.5, "memory_bytes": 64 * GIB, "available_memory_bytes": 60 * GIB,
        "huge_pages": "madvise", "gives_huge_pages": True, "has_python_headers": True, "has_nvidia_device": True,
    },
    "devices": [GPU], "device": "cuda:0", "obstacle": None, "weights_bytes": None, "noted_faults": {},
    "tensor_parallel_sizes": [1, 2, 4],
    "notes_path": "/notes.json", "exam_failure": None, "kernels": [KERNEL], "dtype": "bfloat16", "shape": "qwen-7b",
    "limits": {"copy_bytes_per_s": 3e12, "read_bytes_per_s": 2.9e12, "matmul_flops_per_s": 7e14},
}  # fmt: skip
ON_A_CPU = copy.deepcopy(ON_A_GPU) | {"device": "cpu", "devices": []}
ON_A_CPU["machine"] |= {"has_nvidia_device": False}


def changed(report: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    report = copy.deepcopy(report)
    *parts, last = path.split(".")
    place: Any = report
    for part in parts:
        place = place[int(part) if part.isdigit() else part]
    place[last] = value
    return report


UNSEEN = changed(ON_A_CPU, "machine.has_nvidia_device", True)
TWO_GPUS = changed(ON_A_GPU, "devices", [GPU, GPU | {"device": "cuda:1"}])
THREE_GPUS = changed(ON_A_GPU, "devices", [GPU, GPU | {"device": "cuda:1"}, GPU | {"device": "cuda:2"}])
FULL = changed(ON_A_GPU, "devices.0.free_bytes", 40 * GIB)


@pytest.mark.parametrize("report", [ON_A_GPU, ON_A_CPU])
def test_a_machine_that_is_well_needs_nothing(report: dict[str, Any]) -> None:
    assert advise(report) == []
    assert "nothing: all is well" in as_text(report | {"advice": []})


@pytest.mark.parametrize(
    ("report", "is_problem", "words"),
    [
        (changed(UNSEEN, "versions.CUDA of torch", None), True, "was built without CUDA"),
        (UNSEEN, True, "its driver (580.1) may be too old for CUDA 13.0"),
        (changed(ON_A_GPU, "devices.0.failure", "built for others"), True, "cuda:0 cannot be used: built for"),
        (changed(ON_A_GPU, "versions.C compiler", None), True, "install gcc"),
        (changed(ON_A_GPU, "machine.has_python_headers", False), True, "python3-dev"),
        (changed(ON_A_GPU, "obstacle", "compute capability 7.5 is below 8.0"), False, "capability 7.5"),
        (changed(ON_A_GPU, "kernels.0.failure", "it is off by 3"), True, "rms_norm: it is off by 3; torch's operation"),
        (changed(ON_A_GPU, "kernels.0.share", 0.1), False, "rms_norm takes 10.0 times what the device allows"),
        (changed(ON_A_GPU, "noted_faults", {"silu_mul": "bad address"}), False, "delete /notes.json to have it tried"),
        (changed(ON_A_GPU, "weights_bytes", 90 * GIB), True, "the weights take 90.0 GiB and cuda:0 has 80.0"),
        (changed(TWO_GPUS, "weights_bytes", 90 * GIB), True, "among 2 devices (--tensor-parallel-size 2), or take a"),
        (changed(TWO_GPUS, "weights_bytes", 130 * GIB), True, "has 80.0: take a smaller checkpoint"),
        (changed(THREE_GPUS, "weights_bytes", 130 * GIB), True, "among 3 devices (--pipeline-parallel-size 3), or"),
        (changed(FULL, "weights_bytes", 44 * GIB), True, "40.0 of 80.0 are free"),
        (FULL, False, "only 40.0 of 80.0 GiB are free"),
        (changed(ON_A_GPU, "exam_failure", "RuntimeError: no"), True, "could not be looked at: RuntimeError: no"),
        (changed(ON_A_CPU, "versions.llvmlite", None), False, "pip install llvmlite"),
        (changed(ON_A_CPU, "machine.gives_huge_pages", False), False, "/sys/kernel/mm/transparent_hugepage/enabled"),
        (changed(ON_A_CPU, "machine.num_usable_cores", 1.5), False, "start with --threads 1"),
        (changed(ON_A_CPU, "machine.load_average", 9.0), False, "9 programs compete for 4 cores"),
        (changed(ON_A_CPU, "weights_bytes", 70 * GIB), True, "the weights take 70.0 GiB and cpu has 64.0"),
    ],
)  # fmt: skip
def test_each_thing_that_is_not_well_is_told_with_what_to_do(
    report: dict[str, Any], is_problem: bool, words: str
) -> None:
    (advice,) = advise(report)
    assert advice.is_problem == is_problem
    assert words in advice.text
    text = as_text(report | {"advice": [advice._asdict()]})
    assert f"  {'!' if is_problem else '-'} {advice.text}" in text


def test_a_cpu_that_lacks_what_a_kernel_needs_has_no_problem() -> None:
    """It serves, by torch's operators; a kernel that gives wrong numbers is another matter."""
    report = changed(ON_A_CPU, "kernels.0.failure", "this processor has no AVX512-BF16")
    report = changed(report, "kernels.0.error", None)
    assert [advice.is_problem for advice in advise(report)] == [False]
    assert [advice.is_problem for advice in advise(changed(report, "kernels.0.error", 0.5))] == [True]


def test_shares_are_not_shown_of_calls_that_stay_in_the_cache() -> None:
    report = ON_A_GPU | {"advice": []}
    assert "90%" in as_text(report)
    assert "90%" not in as_text(changed(report, "kernels.0.bytes", 1 << 20))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures little; the machine may be busy."""
    monkeypatch.setattr(limits, "_MAX_COPY_BYTES", {"cpu": 1 << 20})
    monkeypatch.setattr(limits, "_MATMUL_SIZE", {"cpu": 64})
    monkeypatch.setattr(cpu_exam, "_CONTEXT", 64)
    monkeypatch.setattr(cpu_exam, "_FLUSH_BYTES", 1 << 20)


@pytest.mark.usefixtures("quick")
def test_this_machine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What it says is true: versions, cores, kernels that work within their tolerance."""
    words = ["doctor", "--config", json.dumps(asdict(SHAPE)), "--shape", "tiny", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", [*words, "--json"])
    assert doctor.main() == 0
    report = json.loads(capsys.readouterr().out)
    assert report["versions"]["torch"] == torch.__version__
    assert report["device"] == "cpu"
    assert report["exam_failure"] is None
    names = [kernel["name"] for kernel in report["kernels"]]
    assert names[1:] == ["product, Int4", "product, Int8", *names[3:]]
    assert len(names) == 6
    for kernel in report["kernels"]:
        assert kernel["failure"] is not None or kernel["error"] <= kernel["tolerance"]
        assert kernel["failure"] is not None or kernel["time_us"] > 0
    assert report["limits"]["copy_bytes_per_s"] > 1e8
    assert report["machine"]["num_usable_cores"] <= report["machine"]["num_cores"]
    assert report["machine"]["available_memory_bytes"] <= report["machine"]["memory_bytes"]
    monkeypatch.setattr("sys.argv", words)
    assert doctor.main() == 0
    text = capsys.readouterr().out
    assert "kernels on cpu, tiny, " in text
    assert "instruction sets" in text


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("name", "expected"), [("qwen-1.8b-int4", "product, Int4"), ("qwen-1.8b", "product, bfloat16")]
)
def test_a_checkpoint_has_its_own_kernels_looked_at(name: str, expected: str) -> None:
    config = published_shape(name)
    assert config is not None
    config = ModelConfig(**{**{f: getattr(config, f) for f in config.__slots__}, "intermediate_size": 256})
    exams = examine_cpu(config, torch.bfloat16, torch.bfloat16, all_kernels=False)
    assert [exam.name for exam in exams] == [expected, "decode attention, bfloat16 cache"]


@pytest.mark.usefixtures("quick")
def test_what_stands_in_the_way_of_a_cpu_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_exam, "make_dense_linear", lambda *rest, **options: None)
    monkeypatch.setattr(cpu_exam, "make_gptq_linear", lambda *rest: (lambda x: torch.zeros(len(x), 128), 0))
    exams = {exam.name: exam for exam in examine_cpu(SHAPE, torch.float32, torch.float32, all_kernels=True)}
    assert "cannot be compiled" in (exams["product, bfloat16"].failure or "")
    assert exams["product, Int8"].failure == "it disagrees with torch"
    assert exams["product, Int8"].error == 1.0


def test_an_exam_that_fails_is_part_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*rest: Any, **options: Any) -> None:
        raise RuntimeError("CUDA error: device busy\nmore")

    monkeypatch.setattr(doctor, "_limits", fail)
    report = doctor.examine(SHAPE, "tiny", torch.device("cpu"), is_given=True)
    assert report["exam_failure"] == "RuntimeError: CUDA error: device busy more"
    assert report["advice"][0]["is_problem"]
    assert "none of ours: RuntimeError" in as_text(report)


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["doctor", "--config", json.dumps(asdict(SHAPE)), "--shape", "tiny", "--device", "xpu:3"]
    monkeypatch.setattr("sys.argv", words)
    assert doctor.main() == 1
    assert "qwen-server: --device xpu: this torch sees no XPU device" in capsys.readouterr().err


def test_a_device_that_does_not_answer_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    def busy(device: torch.device) -> None:
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")

    monkeypatch.setattr(torch.cuda, "get_device_name", busy)
    (device,) = facts.devices()
    assert device["device"] == "cuda:0"
    assert "busy or unavailable" in device["failure"]
    assert find_device("cuda") == torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", None), ("150000 100000", 1.5), ("10000000 100000", None), ("", None)]
)
def test_cores_of_a_container(quota: str, cores: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(facts, "_CPU_QUOTA", tmp_path / "cpu.max")
    assert facts._num_usable_cores() == (cores or 8.0)
