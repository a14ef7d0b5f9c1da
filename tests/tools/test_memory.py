"""`qwen-server memory`: the arithmetic against real files and published figures, and the command's mistakes."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from model.contract.errors import CheckpointError
from model.contract.files.model_config import read_model_config
from model.contract.files.safetensors_header import read_header
from model.contract.memory_plan import MemoryPlan, plan_memory
from model.execution.kv_cache import kv_cache_block_bytes
from server.__main__ import main
from tests.support.engine_driver import LoadedModel
from tests.support.paths import ROOT
from tests.support.server_process import ServerProcess
from tools.memory.published_shapes import CARD_FIGURES, PUBLISHED_NAMES, published_shape

GOLDEN = ROOT / "tests" / "data" / "golden"


def run(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    assert main(["memory", *flags, "--json"]) == 0
    figures: dict[str, Any] = json.loads(capsys.readouterr().out)
    return figures


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.iterdir() if (path / "config.json").exists()))
def test_weights_are_those_of_the_files(name: str) -> None:
    config = read_model_config(GOLDEN / name)
    stored = read_header(GOLDEN / name / "model.safetensors")
    dtype = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[stored["transformer.wte.weight"].dtype]
    # g_idx is read at load and not kept; the plan does not count it.
    num_bytes = sum(info.num_bytes for tensor, info in stored.items() if not tensor.endswith("g_idx"))
    biases = {t: info for t, info in stored.items() if t.endswith(".bias") and config.quantization}
    num_bytes += sum(2 * info.shape[0] - info.num_bytes for info in biases.values())
    assert plan_memory(config, dtype=dtype).weights_bytes == num_bytes


def test_what_the_engine_says_is_what_the_plan_says(server: ServerProcess, demo_checkpoint: Path) -> None:
    plan = plan_memory(read_model_config(demo_checkpoint), dtype="auto")
    line = next(line for line in server.log().splitlines() if "engine ready" in line)
    said = dict(part.split("=", 1) for part in line.split() if "=" in part)
    plan = plan_memory(plan.config, dtype=said["dtype"], block_size=int(said["block_size"]))
    assert int(said["weights_bytes"]) == plan.weights_bytes
    assert int(said["kv_cache_bytes"]) == int(said["num_blocks"]) * plan.kv_block_bytes
    assert "memory: weights" in server.log()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["gptq_int4", "gptq_int8", "gptq_int4_asym_desc_act"])
def test_quantised_weights_stay_about_as_small_as_they_are_stored(name: str, dtype: str) -> None:
    """How a backend packs them is its own business; a few percent are its to spend."""
    model = LoadedModel(GOLDEN / name, getattr(torch, dtype))
    assert model.num_bytes == pytest.approx(plan_memory(model.config, dtype=dtype).weights_bytes, rel=0.08)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int8"])
def test_the_cache_is_reckoned_as_it_is_allocated(dtype: str) -> None:
    config = read_model_config(GOLDEN / "gptq_int4")
    plan = plan_memory(config, kv_cache_dtype=dtype, block_size=32)
    assert plan.kv_block_bytes == kv_cache_block_bytes(config, 32, getattr(torch, dtype))


def test_the_published_cards_are_near() -> None:
    """Ours is below: the cards' peaks hold logits of whole prompts and a cache that is copied as it grows."""
    for (name, bits), (prompt_gb, reply_gb) in CARD_FIGURES.items():
        config = published_shape(name + ("" if bits is None else f"-int{bits}"))
        assert config is not None
        plan = plan_memory(config)
        assert 0.85 < plan.peak_bytes(1, 2048, 1) / 1e9 / prompt_gb < 1.01
        if reply_gb is not None:
            assert 0.7 < plan.peak_bytes(1, 1, 8192) / 1e9 / reply_gb < 1.0


@pytest.mark.parametrize(("name", "billions"), [("qwen-1.8b", 1.84), ("qwen-7b", 7.72), ("qwen-14b", 14.2)])
def test_published_sizes(name: str, billions: float) -> None:
    config = published_shape(name)
    assert config is not None
    assert plan_memory(config, dtype="bfloat16").weights_bytes / 2e9 == pytest.approx(billions, rel=0.01)


def test_a_cache_of_int8_holds_nearly_twice_the_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("qwen-7b", "--device-memory", "80GiB", "--device-memory", "16GiB")
    plain, small = run(capsys, *flags), run(capsys, *flags, "--kv-cache-dtype", "int8")
    assert plain["kv_cache_bytes_per_token"] == 2 * 32 * 4096 * 2
    assert 1.9 < small["devices"][0]["tokens"] / plain["devices"][0]["tokens"] < 2.0
    assert plain["devices"][1]["missing_bytes"] > 0
    assert plain["devices"][1]["sequences"]["2048"] == 0


def test_what_fits_fits_and_one_block_more_does_not() -> None:
    config = published_shape("qwen-1.8b")
    assert config is not None
    plan = MemoryPlan(config, "bfloat16", "bfloat16", 16, 512)
    device = 8 << 30
    blocks = plan.blocks_that_fit(device, 32)
    rest = device - plan.weights_bytes - plan.activation_bytes(512, 32)
    assert blocks * plan.kv_block_bytes <= rest < (blocks + 1) * plan.kv_block_bytes
    assert plan.blocks_that_fit(1 << 30, 32) < 0


def test_every_published_name_has_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    for name in PUBLISHED_NAMES:
        assert main(["memory", name]) == 0
    assert "48.9 / -" in capsys.readouterr().out


def test_published_hub_ids_need_no_network(capsys: pytest.CaptureFixture[str]) -> None:
    figures = run(capsys, "Qwen/Qwen-14B-Chat-Int4")
    assert figures["quantization"] == {"bits": 4, "group_size": 128}
    assert figures["peak"][6]["card_gb"] == [13.0, 21.8]
    assert figures == run(capsys, "qwen-14b-int4")


def test_settings_count(capsys: pytest.CaptureFixture[str]) -> None:
    figures = run(capsys, "Qwen-1_8B-Chat", "--dtype", "float32", "--block-size", "32", "--max-model-len", "100")
    assert figures["kv_cache_bytes_per_block"] == 32 * figures["kv_cache_bytes_per_token"] == 32 * 2 * 24 * 2048 * 4
    assert list(figures["devices"][0]["sequences"]) == ["100"]
    assert figures["peak"][0]["weights"] == "32 bits"
    own = run(capsys, str(GOLDEN / "gptq_int8"))
    assert own["quantization"] == {"bits": 8, "group_size": 128}
    assert [row["is_own"] for row in own["peak"] if row["batch"] == 1] == [False, True, False]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["nowhere"], "nor one of qwen-1.8b"),
        (["/no/such/folder"], "no such folder"),
        ([str(ROOT / "README.md")], "is a file"),
        ([str(ROOT / "tests")], "config.json"),
    ],
)
def test_mistakes_are_one_line(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", *flags]) == 1
    errors = capsys.readouterr().err
    assert words in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    "flag", ["--device-memory=0", "--device-memory=lots", "--gpu-memory-utilization=2", "--block-size=0"]
)
def test_bad_flags(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["memory", "qwen-7b", flag])
    assert flag.split("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x05",
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"{abc",
        struct.pack("<Q", 10) + b'{"a": [1]}',
        struct.pack("<Q", 60) + b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0,36]}}'.ljust(60),
    ],
)
def test_broken_headers(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_header(file)


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, server.__main__ as m; m.main(['memory', 'qwen-7b']);"
        "print(sorted({'torch', 'numpy', 'safetensors', 'httpx'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
