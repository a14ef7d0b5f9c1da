"""`tools.quantize.run`: whole checkpoints, from the original to one that loads and says nearly the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from model.contract.errors import CheckpointError, ConfigError
from model.contract.tokenizer import Tokenizer
from model.quantization.offline import checkpoint_writer
from model.quantization.offline.block_stages import STAGES, CalibrationRun
from model.quantization.offline.calibration import calibration_samples
from model.quantization.offline.gptq_solver import quantize_linear
from model.quantization.offline.tensor_source import TensorSource
from server.run_module import module_command
from tests.support.engine_driver import LoadedModel
from tests.support.paths import ROOT
from tools.quantize import run as module
from tools.quantize.options import QuantizeOptions
from tools.quantize.run import quantize

GOLDEN = ROOT / "tests" / "data" / "golden"
SOURCE = GOLDEN / "ntk_logn_fp32"
IDS = [(7 * n) % 250 for n in range(60)]


def options(target: Path, bits: int = 4, source: Path = SOURCE, **more: object) -> QuantizeOptions:
    settings: dict[str, object] = {"num_samples": 24, "sample_length": 64, "num_threads": 1, "device": "cpu"}
    return QuantizeOptions(source=source, target=target, bits=bits, **{**settings, **more})  # type: ignore[arg-type]


def divergence(folder: Path) -> float:
    """Mean KL of the next token's distribution from the original's, on text it was not calibrated with."""
    models = LoadedModel(SOURCE), LoadedModel(folder)
    text = calibration_samples(Tokenizer.from_folder(SOURCE), None, num_samples=8, sample_length=60, seed=5)
    total = 0.0
    for ids in text.tolist():
        original, other = (model.logits(ids).log_softmax(-1) for model in models)
        total += float((original.exp() * (original - other)).sum(-1).mean())
    return total / len(text)


@pytest.mark.parametrize("folder", ["ntk_logn_fp32", "plain_theta1e6_fp32", "first_release_names_bf16"])
def test_the_stages_are_the_architecture(folder: str) -> None:
    """With nothing quantised, the samples come out as they do of the model."""
    model = LoadedModel(GOLDEN / folder)
    source = TensorSource(GOLDEN / folder)
    samples = torch.tensor([IDS, IDS[::-1]])
    with torch.inference_mode():
        embedding = source.read(["transformer.wte.weight"])["transformer.wte.weight"]
        run = CalibrationRun(model.config, samples, embedding, torch.device("cpu"))
        for layer in range(model.config.num_layers):
            prefix = f"transformer.h.{layer}."
            names = ["ln_1.weight", "ln_2.weight", "attn.c_attn.bias", *(f"{n}.weight" for s in STAGES for n in s)]
            weights = {name: source.read([prefix + name])[prefix + name].float() for name in names}
            run.run_block(weights, lambda name, hessian: None)
        logits = [model.model.logits(model.model.transformer.ln_f(hidden)) for hidden in run.hidden]
    for sample, ours in zip(samples.tolist(), logits, strict=True):
        assert torch.allclose(ours, model.logits(sample), rtol=1e-4, atol=1e-4)


def test_int8_is_nearly_the_original_and_int4_better_than_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors8 = quantize(options(tmp_path / "int8", 8))
    errors4 = quantize(options(tmp_path / "int4"))
    quantize(options(tmp_path / "ordered", act_order=True, group_size=32))

    def nearest(weight: torch.Tensor, hessian: torch.Tensor, **settings: object) -> object:
        return quantize_linear(weight, torch.eye(len(hessian)), **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "quantize_linear", nearest)
    rounded = quantize(options(tmp_path / "rounded"))
    assert len(errors4) == 3 * 5
    assert all(errors4[name] < 0.6 * rounded[name] for name in errors4)
    assert max(errors8.values()) < 1e-4
    # Random weights are the hardest case: nothing in them is redundant, and errors grow from block to block.
    far = {name: divergence(tmp_path / name) for name in ("int8", "int4", "ordered", "rounded")}
    assert far["int8"] < 5e-3
    assert far["ordered"] < far["int4"] < 1.05 * far["rounded"] < 0.6


def test_the_folder_is_in_the_published_layout(tmp_path: Path) -> None:
    target = tmp_path / "made" / "Int4"
    quantize(options(target))
    published = load_file(GOLDEN / "gptq_int4" / "model.safetensors")
    ours = load_file(target / "model.safetensors")
    kinds = {name.replace(".2.", ".0.").replace(".1.", ".0."): tensor.dtype for name, tensor in ours.items()}
    assert kinds == {name.replace(".1.", ".0."): tensor.dtype for name, tensor in published.items()}
    config = json.loads((target / "config.json").read_text())
    golden = json.loads((GOLDEN / "gptq_int4" / "config.json").read_text())
    assert config["quantization_config"] == golden["quantization_config"]
    assert (config["fp16"], config["bf16"], config["fp32"]) == (True, False, False)
    assert json.loads((target / "quantize_config.json").read_text())["bits"] == 4
    for name in ("qwen.tiktoken", "tokenizer_config.json", "generation_config.json"):
        assert (target / name).read_bytes() == (SOURCE / name).read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["Int4"]
    assert (target / "model.safetensors").stat().st_mode & 0o044 == (target / "config.json").stat().st_mode & 0o044


def test_the_same_seed_makes_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        quantize(options(tmp_path / name, seed=seed, num_samples=4))
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_shards_and_bin_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantize(options(tmp_path / "whole", num_samples=4))
    shutil.copytree(SOURCE, tmp_path / "bin")
    torch.save(load_file(SOURCE / "model.safetensors"), tmp_path / "bin" / "pytorch_model.bin")
    (tmp_path / "bin" / "model.safetensors").unlink()
    monkeypatch.setattr(checkpoint_writer, "_MAX_SHARD_BYTES", 200_000)
    quantize(options(tmp_path / "shards", source=tmp_path / "bin", num_samples=4))
    assert len(list((tmp_path / "shards").glob("model-*-of-*.safetensors"))) > 2
    assert torch.equal(LoadedModel(tmp_path / "shards").logits(IDS), LoadedModel(tmp_path / "whole").logits(IDS))


def test_calibration_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(SOURCE)
    settings = {"num_samples": 3, "sample_length": 16, "seed": 0}
    built_in = calibration_samples(tokenizer, None, **settings)
    assert built_in.shape == (3, 16)
    assert not torch.equal(built_in, calibration_samples(tokenizer, None, **{**settings, "seed": 1}))
    text = tmp_path / "text.txt"
    text.write_text("abcdefgh" * 8)
    assert calibration_samples(tokenizer, text, **settings).shape == (3, 16)
    assert calibration_samples(tokenizer, text, **{**settings, "num_samples": 99}).shape == (4, 16)
    lines = tmp_path / "lines.jsonl"
    talk = '{"messages": [{"role": "user", "content": "hello there"}]}'
    lines.write_text(f'{{"text": "abcdefgh\u2028ijklmnop"}}\n\n{talk}\n')
    pieces = calibration_samples(tokenizer, lines, num_samples=9, sample_length=8, seed=0)
    assert tokenizer.endoftext_id in pieces
    assert tokenizer.im_start_id in pieces
    for content, words in (("", "holds 0 tokens"), ("{", "line 1: not JSON"), ('{"a": 1}', "line 1: needs `text`")):
        lines.write_text(content)
        with pytest.raises(ConfigError, match=words):
            calibration_samples(tokenizer, lines, **settings)
    with pytest.raises(ConfigError, match="cannot read"):
        calibration_samples(tokenizer, tmp_path / "none", **settings)


TURNS = [{"from": "user", "value": "hello there"}, {"from": "assistant", "value": "good day"}]


def test_the_published_fine_tuning_format_is_calibrated_as_chat(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(SOURCE)
    start, end = tokenizer.im_start_id, tokenizer.im_end_id
    turns = [("system", "You are a helpful assistant."), ("user", "hello there"), ("assistant", "good day")]
    chat = [i for role, text in turns for i in (start, *f"{role}\n{text}".encode(), end, ord("\n"))]

    def ids(name: str, content: str) -> list[int]:
        path = tmp_path / name
        path.write_text(content)
        pieces = calibration_samples(tokenizer, path, num_samples=1, sample_length=len(chat), seed=0)
        return pieces[0].tolist()

    entry = {"id": "identity_0", "conversations": TURNS}
    for content in ([entry], [entry, entry], entry):
        assert ids("a.json", json.dumps(content)) == chat
    assert ids("a.jsonl", json.dumps(entry)) == ids("b.json", f"{json.dumps(entry)}\n{json.dumps(entry)}\n") == chat
    share_gpt = [{**turn, "from": name} for turn, name in zip(TURNS, ("human", "gpt"), strict=True)]
    assert ids("c.json", json.dumps([{"conversations": share_gpt}])) == chat
    with_system = [{"from": "system", "value": "You are a helpful assistant."}, *TURNS]
    assert ids("d.json", json.dumps([{"conversations": with_system}])) == chat
    messages = [{"role": role, "content": text} for role, text in turns]
    assert ids("e.json", json.dumps([{"messages": messages}])) == chat
    for content, words in (
        ('[{"conversations": [{"from": "user"}]}]', "entry 1: needs `text`"),
        ("[1]", "entry 1: needs"),
        ("a prose", "line 1: not JSON"),
    ):
        with pytest.raises(ConfigError, match=words):
            ids("f.json", content)


def test_refusals_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="is quantised already"):
        quantize(options(tmp_path / "x", source=GOLDEN / "gptq_int8"))
    with pytest.raises(ConfigError, match="exists already"):
        quantize(options(SOURCE))
    broken = tmp_path / "broken"
    shutil.copytree(SOURCE, broken)
    tensors = load_file(SOURCE / "model.safetensors")
    name = "transformer.h.2.mlp.w1.weight"
    save_file({**tensors, name: tensors[name] * float("inf")}, str(broken / "model.safetensors"))
    with pytest.raises(CheckpointError, match=r"h\.2\.mlp\.w1\.weight' holds infinities"):
        quantize(options(tmp_path / "x", source=broken, num_samples=2))
    save_file({f"module.{key}": tensor for key, tensor in tensors.items()}, str(broken / "model.safetensors"))
    with pytest.raises(CheckpointError, match=r"carries 'module\.' in front"):
        quantize(options(tmp_path / "x", source=broken, num_samples=2))
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, str(broken / "model.safetensors"))
    with pytest.raises(CheckpointError, match="missing tensors: transformer"):
        quantize(options(tmp_path / "x", source=broken, num_samples=2))
    os.truncate(broken / "model.safetensors", 5000)
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        quantize(options(tmp_path / "x", source=broken, num_samples=2))

    def fill_the_disk(*arguments: object, **options: object) -> None:
        raise SafetensorError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(ConfigError, match="x: cannot be written"):
        patch.setattr("model.quantization.offline.checkpoint_writer.save_file", fill_the_disk)
        quantize(options(tmp_path / "x", num_samples=2))

    def interrupt(name: str, error: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        module.quantize(options(tmp_path / "x"), interrupt)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ConfigError, match="GB are needed"):
        quantize(options(tmp_path / "x"))
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_does_the_same(tmp_path: Path) -> None:
    there = quantize(options(tmp_path / "gpu", device="cuda"))
    here = quantize(options(tmp_path / "cpu"))
    assert all(there[name] == pytest.approx(here[name], rel=0.2) for name in here)
    assert divergence(tmp_path / "gpu") < 1.2 * divergence(tmp_path / "cpu")


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "Int8"
    command = module_command("server", "quantize", str(SOURCE), str(target), "--bits", "8")
    command += ["--device", "cpu", "--threads", "1", "--num-samples", "2", "--sample-length", "32"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "100%" in done.stderr
    assert "relative output error" in done.stderr
    assert divergence(target) < 1e-2
    monkeypatch.setattr("sys.argv", ["quantize", str(SOURCE), str(target), "--bits", "8"])
    assert module.main() == 1
    assert capsys.readouterr().err == f"qwen-server: {target}: exists already; name a new folder, or an empty one\n"


def test_an_interrupted_command_leaves_no_folder(tmp_path: Path) -> None:
    command = module_command("server", "quantize", str(SOURCE), str(tmp_path / "x"), "--bits", "4")
    command += ["--device", "cpu", "--threads", "1", "--num-samples", "4000", "--sample-length", "64"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not any(tmp_path.iterdir()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.endswith("interrupted; nothing was written\n")
    assert list(tmp_path.iterdir()) == []
