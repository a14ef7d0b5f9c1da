"""Every layout a checkpoint comes in, and every way it can be broken: one line that says what and where."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from demo.random_checkpoint import Shape, write
from model.architectures.causal_lm import CausalLM
from model.contract.engine_config import EngineConfig
from model.contract.errors import CheckpointError
from model.contract.files.model_config import read_model_config
from model.execution.checkpoint import load_weights
from model.execution.tensor_files import iterate_tensors, stored_rows
from model.loop.engine import Engine
from tests.support.engine_driver import LoadedModel
from tests.support.paths import ROOT

PROMPT = [5, 280, 17, 17, 99, 0, 42]
NORM = "transformer.ln_f.weight"
EMBEDDING = "transformer.wte.weight"
HEAD = "lm_head.weight"

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def tensors(tiny_checkpoint: Path) -> Tensors:
    return load_file(tiny_checkpoint / "model.safetensors")


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint folder that has no weights yet."""
    path = tmp_path / "checkpoint"
    path.mkdir()
    shutil.copy(tiny_checkpoint / "config.json", path)
    return path


def write_safetensors(folder: Path, tensors: Tensors) -> Path:
    path = folder / "model.safetensors"
    save_file(tensors, path)
    return path


def write_bin(folder: Path, tensors: Tensors) -> Path:
    path = folder / "pytorch_model.bin"
    torch.save(tensors, path)
    return path


def write_legacy_bin(folder: Path, tensors: Tensors) -> Path:
    path = folder / "pytorch_model.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    return path


def write_shards(folder: Path, shards: dict[str, Tensors], index_name: str) -> Path:
    for name, part in shards.items():
        (folder / name).parent.mkdir(exist_ok=True)
        if name.endswith(".safetensors"):
            save_file(part, folder / name)
        else:
            torch.save(part, folder / name)
    weight_map = {key: name for name, part in shards.items() for key in part}
    path = folder / index_name
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return path


def split(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Two shards; a layer's weight and bias fall into different ones."""
    names = sorted(tensors)
    return {n: tensors[n] for n in names[::2]}, {n: tensors[n] for n in names[1::2]}


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as e:
        LoadedModel(folder)
    message = str(e.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


WRITERS: dict[str, Callable[[Path, Tensors], Path]] = {
    "one safetensors": write_safetensors,
    "one bin": write_bin,
    "one legacy bin": write_legacy_bin,
    "safetensors shards": lambda folder, tensors: write_shards(
        folder,
        dict(
            zip(("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"), split(tensors), strict=True)
        ),
        "model.safetensors.index.json",
    ),
    "bin shards": lambda folder, tensors: write_shards(
        folder,
        dict(
            zip(("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"), split(tensors), strict=True)
        ),
        "pytorch_model.bin.index.json",
    ),
    "shards in a subfolder": lambda folder, tensors: write_shards(
        folder,
        dict(zip(("part/a.safetensors", "part/b.safetensors"), split(tensors), strict=True)),
        "model.safetensors.index.json",
    ),
    "bin shards without an index": lambda folder, tensors: write_shards(
        folder,
        dict(
            zip(("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"), split(tensors), strict=True)
        ),
        "lost.json",
    ),
    "auto-gptq's bin": lambda folder, tensors: write_bin(folder, tensors).rename(folder / "gptq_model-4bit-128g.bin"),
    "safetensors of another name": lambda folder, tensors: write_safetensors(folder, tensors).rename(
        folder / "weights.safetensors"
    ),
}


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_loads_the_same(layout: str, tiny_checkpoint: Path, folder: Path, tensors: Tensors) -> None:
    WRITERS[layout](folder, tensors)
    model = LoadedModel(folder)
    assert torch.equal(model.logits(PROMPT), LoadedModel(tiny_checkpoint).logits(PROMPT))
    assert model.num_bytes == sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize("write_weights", [write_safetensors, write_bin])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("wanted", [torch.bfloat16, torch.float16, torch.float32])
def test_every_dtype_becomes_the_one_wanted(
    write_weights: Callable[[Path, Tensors], Path],
    stored: torch.dtype,
    wanted: torch.dtype,
    folder: Path,
    tensors: Tensors,
    tmp_path: Path,
) -> None:
    write_weights(folder, {name: tensor.to(stored) for name, tensor in tensors.items()})
    converted = shutil.copytree(folder, tmp_path / "converted", ignore=shutil.ignore_patterns("*.bin"))
    write_safetensors(converted, {name: tensor.to(stored).to(wanted) for name, tensor in tensors.items()})
    model = LoadedModel(folder, wanted)
    assert torch.equal(model.logits(PROMPT), LoadedModel(converted, wanted).logits(PROMPT))
    assert model.num_bytes == sum(tensor.numel() for tensor in tensors.values()) * wanted.itemsize
    assert model.model.transformer.ln_f.weight.dtype == wanted


def test_tensors_that_are_not_contiguous(tiny_checkpoint: Path, folder: Path, tensors: Tensors) -> None:
    write_bin(folder, {n: t.t().contiguous().t() if t.dim() == 2 else t for n, t in tensors.items()})
    model = LoadedModel(folder)
    assert torch.equal(model.logits(PROMPT), LoadedModel(tiny_checkpoint).logits(PROMPT))
    assert model.model.transformer.wte.weight.is_contiguous()


def test_stray_buffers_are_ignored(tiny_checkpoint: Path, folder: Path, tensors: Tensors) -> None:
    stray = {
        "transformer.rotary_emb.inv_freq": torch.ones(8),
        "transformer.h.0.attn.rotary_emb.inv_freq": torch.ones(8),
        "transformer.h.1.attn.masked_bias": torch.tensor(-1e4),
        "transformer.h.1.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool),
    }
    write_safetensors(folder, tensors | stray)
    assert torch.equal(LoadedModel(folder).logits(PROMPT), LoadedModel(tiny_checkpoint).logits(PROMPT))


def test_progress_ends_at_the_whole(tiny_checkpoint: Path) -> None:
    seen: list[tuple[int, int]] = []
    config = EngineConfig(
        checkpoint_path=str(tiny_checkpoint), device="cpu", num_threads=1, kv_cache_memory_bytes=1 << 20
    )
    Engine(config, lambda read, total: seen.append((read, total)))
    total = (tiny_checkpoint / "model.safetensors").stat().st_size
    assert seen == sorted(seen)
    assert {t for _, t in seen} == {total}
    assert 0.9 * total < seen[-1][0] <= total


# --- what is wrong with the tensors


def test_a_missing_tensor(folder: Path, tensors: Tensors) -> None:
    del tensors["transformer.h.1.mlp.w2.weight"]
    write_safetensors(folder, tensors)
    assert refusal(folder).endswith("missing tensors: transformer.h.1.mlp.w2.weight")


def test_many_missing_tensors_are_counted(folder: Path, tensors: Tensors) -> None:
    write_safetensors(folder, {EMBEDDING: tensors[EMBEDDING]})
    assert f"and {len(tensors) - 4} more" in refusal(folder)


def test_an_unexpected_tensor(folder: Path, tensors: Tensors) -> None:
    path = write_safetensors(folder, tensors | {"transformer.h.2.ln_1.weight": torch.ones(32)})
    assert refusal(folder).startswith(f"{path}: unexpected tensor 'transformer.h.2.ln_1.weight' [32]")


@pytest.mark.parametrize("shape", [(299, 32), (32, 300), (300, 32, 1), (9600,)])
def test_a_misshapen_tensor(folder: Path, tensors: Tensors, shape: tuple[int, ...]) -> None:
    path = write_safetensors(folder, tensors | {HEAD: torch.zeros(shape)})
    assert refusal(folder) == f"{path}: tensor '{HEAD}' has shape {list(shape)}, but config.json asks for [300, 32]"


def test_a_tensor_in_two_shards(folder: Path, tensors: Tensors) -> None:
    first, second = split(tensors)
    name = next(iter(first))
    shards = {"a.safetensors": first, "b.safetensors": second | {name: first[name]}}
    write_shards(folder, shards, "model.safetensors.index.json")
    assert refusal(folder) == f"{folder / 'b.safetensors'}: tensor '{name}' is stored twice"


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.bool, torch.complex64])
def test_a_dtype_that_is_no_weight(folder: Path, tensors: Tensors, dtype: torch.dtype) -> None:
    path = write_bin(folder, tensors | {NORM: torch.ones(32).to(dtype)})
    assert refusal(folder) == f"{path}: tensor '{NORM}' is {dtype}, expected torch.float32"


def test_a_sparse_tensor(folder: Path, tensors: Tensors) -> None:
    path = write_bin(folder, tensors | {NORM: torch.ones(32).to_sparse()})
    assert str(path) in refusal(folder)


# --- what is wrong with the files


def test_no_weights(folder: Path) -> None:
    assert "no weights found; expected model.safetensors" in refusal(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
@pytest.mark.parametrize("write_weights", [write_safetensors, write_bin, write_legacy_bin])
def test_a_truncated_file(
    folder: Path, tensors: Tensors, write_weights: Callable[[Path, Tensors], Path], keep: float
) -> None:
    path = write_weights(folder, tensors)
    os.truncate(path, int(keep * path.stat().st_size) if isinstance(keep, float) else keep)
    message = refusal(folder)
    assert message.startswith(f"{path}: truncated")


@pytest.mark.parametrize("compressed", ["data.pkl", "data/0"])
def test_a_compressed_record(folder: Path, tensors: Tensors, compressed: str) -> None:
    """Also a pickle of a few bytes that says it is a thousand times as long."""
    path = write_bin(folder, tensors)
    packed = folder / "packed"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w") as target:
        for record in source.infolist():
            is_meant = record.filename.endswith(compressed)
            target.writestr(record, source.read(record), zipfile.ZIP_DEFLATED if is_meant else zipfile.ZIP_STORED)
    packed.replace(path)
    assert "was compressed after torch.save wrote it" in refusal(folder)


GARBAGE = {
    "zeros": b"\x00" * 64,
    "half a zip": b"PK\x03\x04" + b"\x00" * 64,
    "ones": b"\xff" * 99,
}


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_garbage(folder: Path, name: str, garbage: bytes) -> None:
    (folder / name).write_bytes(garbage)
    assert refusal(folder).startswith(f"{folder / name}: truncated")


def test_garbled_pickles_never_escape_as_other_errors(folder: Path, tensors: Tensors) -> None:
    """Flips bytes all over a legacy file's pickles; a flip may go unnoticed, but nothing else may be raised."""
    path = write_legacy_bin(folder, {NORM: tensors[NORM]})
    original = path.read_bytes()
    num_refused = 0
    for position in range(0, len(original) - 128, 2):
        garbled = bytearray(original)
        garbled[position] ^= 0x55
        path.write_bytes(garbled)
        try:
            LoadedModel(folder)
        except CheckpointError as e:
            num_refused += "truncated, corrupt" in str(e)
    assert num_refused > 50


class _Executes:
    """Unpickling this runs a command."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self._command,)


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare pickle"])
def test_a_malicious_pickle_is_refused_and_not_executed(
    folder: Path, tensors: Tensors, tmp_path: Path, kind: str
) -> None:
    evidence = tmp_path / "executed"
    state = tensors | {"extra": _Executes(f"touch {evidence}")}
    path = folder / "pytorch_model.bin"
    if kind == "bare pickle":
        path.write_bytes(pickle.dumps(state["extra"], protocol=2))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    message = refusal(folder)
    assert message.startswith(f"{path}: truncated, corrupt or not a file of weights only")
    assert "system" in message, "names what it was asked to import"
    assert "weights_only" not in message, "torch's advice is to go and execute it"
    assert not evidence.exists()


@pytest.mark.parametrize(
    "content", [[torch.ones(2)], {"model": {NORM: torch.ones(32)}}, {NORM: [1.0]}, {0: torch.ones(2)}, torch.ones(2)]
)
def test_a_bin_file_of_other_things(folder: Path, content: Any) -> None:
    path = folder / "pytorch_model.bin"
    torch.save(content, path)
    assert refusal(folder) == f"{path}: holds something other than named tensors"


# --- what is wrong with the index


def test_a_missing_shard(folder: Path, tensors: Tensors) -> None:
    first, second = split(tensors)
    write_shards(folder, {"a.safetensors": first, "b.safetensors": second}, "model.safetensors.index.json")
    (folder / "b.safetensors").unlink()
    message = refusal(folder)
    assert message.startswith(f"{folder / 'b.safetensors'}: no such file, but model.safetensors.index.json names it")


@pytest.mark.parametrize("where", ["../outside.safetensors", "sub/../../outside.safetensors", "/etc/passwd", ".."])
def test_an_index_that_points_elsewhere(folder: Path, tensors: Tensors, where: str) -> None:
    save_file(tensors, folder.parent / "outside.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, where)}))
    assert refusal(folder) == f"{index}: shard {where!r} lies outside the checkpoint folder"


@pytest.mark.parametrize("name", ["", ".", "sub", "a\x00b"])
def test_an_index_that_names_no_file(folder: Path, name: str) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {HEAD: name}}))
    assert "no such file" in refusal(folder)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {}}', "["])
def test_a_malformed_index(folder: Path, content: str) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(content)
    assert refusal(folder).startswith(f"{index}: ")


def test_a_symbolic_link_is_followed(tiny_checkpoint: Path, folder: Path) -> None:
    """The hub's cache is made of them."""
    (folder / "model.safetensors").symlink_to(tiny_checkpoint / "model.safetensors")
    assert torch.equal(LoadedModel(folder).logits(PROMPT), LoadedModel(tiny_checkpoint).logits(PROMPT))


def test_another_architecture(folder: Path, tensors: Tensors) -> None:
    write_safetensors(folder, tensors)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "llama"}))
    with pytest.raises(CheckpointError, match="model_type is 'llama'"):
        Engine(EngineConfig(checkpoint_path=str(folder), device="cpu"))


# --- memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("write_weights", [write_safetensors, write_bin, write_legacy_bin])
def test_the_file_may_go_once_it_is_loaded(
    folder: Path, tensors: Tensors, write_weights: Callable[[Path, Tensors], Path], dtype: torch.dtype
) -> None:
    """A view of the mapped file would crash the process here (SIGBUS), long after a successful start."""
    path = write_weights(folder, {name: tensor.to(dtype) for name, tensor in tensors.items()})
    model = LoadedModel(folder, dtype)
    before = model.logits(PROMPT)
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(path) not in maps.read_text(), "the weights are still views of the file"
    os.truncate(path, 0)
    path.unlink()
    assert torch.equal(model.logits(PROMPT), before)


_MEASURE = """
import os, sys
from pathlib import Path
import torch
from model.backends.cpu.linears.packed_linear import make_dense_linear
from model.backends.cpu.linears.gptq_linear import make_grouped_linear
from model.quantization.at_load import quantize_at_load
from tests.support.engine_driver import LoadedModel

def status_bytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))

def measure(folder, quantization):
    # What the loader takes once, and the compiler of the kernels.
    LoadedModel(Path(tiny), torch.bfloat16, quantization=quantization)
    for wide_results in (False, True):
        make_dense_linear(torch.zeros(64, 64, dtype=torch.bfloat16), None, wide_results=wide_results)
    grouped = quantize_at_load(torch.ones(64, 64), "nf4")
    make_grouped_linear(grouped, None, torch.bfloat16)
    before = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    num_bytes = LoadedModel(Path(folder), torch.bfloat16, quantization=quantization).num_bytes
    print(num_bytes, status_bytes("VmHWM") - before, flush=True)

torch.set_num_threads(1)
tiny, *cases = sys.argv[1:]
for folder, quantization in zip(cases[::2], cases[1::2]):
    child = os.fork()  # torch is imported once for all
    if child == 0:
        measure(folder, quantization)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's view of a process's memory")
def test_memory_peaks_at_the_weights_and_the_largest_tensor(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shape = Shape(
        num_layers=8, hidden_size=768, num_heads=8, intermediate_size=4096, vocab_size=32000, dtype="bfloat16"
    )
    cases = [("one safetensors", "none", 180e6), ("one bin", "none", 180e6), ("one safetensors", "nf4", 120e6)]
    for layout in ("one safetensors", "one bin"):
        _write_zeros(tmp_path / layout, shape, WRITERS[layout])
    arguments = [word for layout, quantization, _ in cases for word in (str(tmp_path / layout), quantization)]
    result = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tiny_checkpoint), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    largest_bytes = shape.vocab_size * shape.hidden_size * 2
    for line, (layout, quantization, least) in zip(result.stdout.splitlines(), cases, strict=True):
        num_bytes, peak_bytes = map(int, line.split())
        assert least < num_bytes < 1.2 * least
        # Measured 1.07 to 1.13, by what malloc makes of it; a second copy of anything but one tensor is far beyond.
        assert peak_bytes < 1.25 * (num_bytes + largest_bytes), (
            f"{layout}, {quantization}: {peak_bytes / 1e6:.0f} MB for {num_bytes / 1e6:.0f} MB of weights, the largest"
            f" {largest_bytes / 1e6:.0f} MB"
        )


def _write_zeros(folder: Path, shape: Shape, write_weights: Callable[[Path, Tensors], Path]) -> None:
    """A checkpoint of a given shape, without drawing random numbers for it."""
    one_layer = Shape(
        num_layers=1,
        hidden_size=shape.hidden_size,
        num_heads=shape.num_heads,
        intermediate_size=shape.intermediate_size,
        vocab_size=300,
        dtype=shape.dtype,
    )
    write(folder, one_layer)
    path = folder / "config.json"
    changes = {"num_hidden_layers": shape.num_layers, "vocab_size": shape.vocab_size}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    weights = folder / "model.safetensors"
    tensors: Tensors = {}
    for name, tensor in load_file(weights).items():
        size = (shape.vocab_size, *tensor.shape[1:]) if name in (EMBEDDING, HEAD) else tensor.shape
        for layer in range(shape.num_layers if ".h.0." in name else 1):
            tensors[name.replace(".h.0.", f".h.{layer}.")] = torch.zeros(size, dtype=tensor.dtype)
    weights.unlink()
    write_weights(folder, tensors)


FP8 = [torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", FP8)
@pytest.mark.parametrize("form", ["none", "one", "an output", "a block"])
def test_fp8_weights_times_their_scales(dtype: torch.dtype, form: str, tmp_path: Path) -> None:
    """In the three forms that there are, against the float32 checkpoint of the products."""
    shape = Shape(num_layers=1, hidden_size=160, num_heads=2, intermediate_size=320, vocab_size=300)
    write(tmp_path / "fp8", shape)
    path = tmp_path / "fp8" / "model.safetensors"
    config = tmp_path / "fp8" / "config.json"
    method = {} if form == "none" else {"quantization_config": {"quant_method": "fp8"}}
    config.write_text(json.dumps(json.loads(config.read_text()) | method))
    shutil.copytree(tmp_path / "fp8", tmp_path / "numbers")
    stored, numbers = load_file(path), load_file(path)
    for name in [name for name in stored if ".h.0." in name and stored[name].dim() == 2]:
        num_outputs, num_inputs = stored[name].shape
        size = {"none": (), "one": (), "an output": (num_outputs, 1)}.get(form, (-(-num_outputs // 128), 2))
        scale = torch.rand(size) + 0.5 if form != "none" else torch.ones(())
        stored[name] = stored[name].to(dtype)
        if form != "none":
            stored[f"{name}_scale_inv" if form == "a block" else f"{name}_scale"] = scale
            stored[name.replace(".weight", ".input_scale")] = torch.ones(1)
        for n in range(num_outputs):
            for low in range(0, num_inputs, 128):
                part = (n, slice(low, low + 128))
                factor = scale[n // 128, low // 128] if form == "a block" else scale[n] if scale.dim() else scale
                numbers[name][part] = stored[name].float()[part] * factor
    save_file(stored, path)
    save_file(numbers, tmp_path / "numbers" / "model.safetensors")
    plain = json.loads(config.read_text()) | {"quantization_config": None}
    (tmp_path / "numbers" / "config.json").write_text(json.dumps(plain))
    found, expected = (LoadedModel(tmp_path / folder).logits(PROMPT) for folder in ("fp8", "numbers"))
    assert torch.equal(found, expected)


def test_an_fp8_scale_that_does_not_fit(folder: Path, tensors: Tensors) -> None:
    name = "transformer.h.0.attn.c_proj.weight"
    tensors[name] = tensors[name].to(FP8[0])
    write_safetensors(folder, tensors | {f"{name}_scale": torch.ones(7)})
    assert "is FP8 of shape [32, 32], and its scale of shape [7]" in refusal(folder)


@pytest.mark.parametrize("where", [".", "global_step20"])
def test_deepspeed_states_are_read(where: str, tiny_checkpoint: Path, folder: Path, tensors: Tensors) -> None:
    for step in ("global_step3", where):
        (folder / step).mkdir(exist_ok=True)
        scale = 1.0 if step == where else 2.0
        states = {"module": {name: t * scale for name, t in tensors.items()}, "optimizer": None, "global_steps": 20}
        if step == where or where != ".":
            torch.save(states, folder / step / "mp_rank_00_model_states.pt")
    (folder / "latest").write_text("global_step20\n")
    assert torch.equal(LoadedModel(folder).logits(PROMPT), LoadedModel(tiny_checkpoint).logits(PROMPT))


def test_deepspeed_partitions_are_named(folder: Path) -> None:
    step = folder / "global_step8"
    step.mkdir()
    for rank in range(2):
        (step / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt").write_bytes(b"x")
    assert "ZeRO stage 3; put them together first: python zero_to_fp32.py" in refusal(folder)
    for path in step.iterdir():
        path.unlink()
    for rank in range(2):
        (step / f"mp_rank_0{rank}_model_states.pt").write_bytes(b"x")
    assert "a model split among 2 ranks (mp_rank_00_model_states.pt ...)" in refusal(folder)


def test_load_weights_leaves_nothing_on_the_meta_device(tiny_checkpoint: Path) -> None:
    model = LoadedModel(tiny_checkpoint).model
    assert not [name for name, parameter in model.named_parameters() if parameter.is_meta or parameter.requires_grad]


def test_buffers_are_filled_as_well(tmp_path: Path) -> None:
    module = CausalLM()
    module.register_buffer("table", torch.empty(3, dtype=torch.int32, device="meta"))
    save_file({"table": torch.arange(3, dtype=torch.int32)}, tmp_path / "model.safetensors")
    assert load_weights(module, tmp_path, torch.device("cpu")) == 12
    assert module.table.tolist() == [0, 1, 2]


def test_config_and_tensors_agree_for_the_first_releases_names() -> None:
    folder = ROOT / "tests" / "data" / "golden" / "first_release_names_bf16"
    model = LoadedModel(folder, torch.bfloat16)
    assert model.config == read_model_config(folder)
    assert model.logits(PROMPT).isfinite().all()


def test_a_file_of_another_user_is_called_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(2)}, str(path))
    may = os.access  # root may read everything
    monkeypatch.setattr(os, "access", lambda name, mode: name != path and may(name, mode))
    with pytest.raises(CheckpointError, match="permission denied"):
        list(iterate_tensors(path))


# --- what a tensor's name tells


@pytest.mark.parametrize(
    ("prefix", "advice"),
    [
        ("module.", "data-parallel training; save model.module"),
        ("base_model.model.", "merge_and_unload"),
        ("_orig_mod.", "torch.compile"),
    ],
)
def test_names_with_a_wrapper_in_front(prefix: str, advice: str, folder: Path, tensors: Tensors) -> None:
    write_safetensors(folder, {prefix + name: tensor for name, tensor in tensors.items()})
    assert advice in refusal(folder)


@pytest.mark.parametrize("kind", ["g_idx", "qweight", "qzeros", "scales"])
def test_quantised_tensors_without_a_config(kind: str, folder: Path, tensors: Tensors) -> None:
    name = f"transformer.h.0.mlp.w1.{kind}"
    write_safetensors(folder, tensors | {name: torch.zeros(2, dtype=torch.int32)})
    message = refusal(folder)
    assert name in message and "GPTQ" in message and "quantize_config.json" in message


# --- an embedding that a fine-tune has resized


@pytest.mark.parametrize("write_weights", [write_safetensors, write_bin, WRITERS["bin shards"]])
@pytest.mark.parametrize("stale", ["vocab_size", "padded_vocab_size"])
@pytest.mark.parametrize("other", [100, 5000])
def test_of_two_vocab_sizes_the_stored_one_counts(
    write_weights: Callable[[Path, Tensors], Path], stale: str, other: int, folder: Path, tensors: Tensors
) -> None:
    rows = tensors[EMBEDDING].shape[0]
    raw = json.loads((folder / "config.json").read_text())
    raw |= {"vocab_size": rows, "padded_vocab_size": rows, stale: other}
    (folder / "config.json").write_text(json.dumps(raw))
    write_weights(folder, tensors)
    assert read_model_config(folder, stored_rows).vocab_size == rows
    if write_weights is write_safetensors:
        assert read_model_config(folder).vocab_size == rows
    config = EngineConfig(checkpoint_path=str(folder), device="cpu", kv_cache_memory_bytes=1 << 20, max_model_len=64)
    assert Engine(config).ready.vocab_size == rows


def engine_of(folder: Path, **raw: Any) -> Engine:
    config = json.loads((folder / "config.json").read_text()) | {"bf16": False, "fp16": False, "fp32": False} | raw
    (folder / "config.json").write_text(json.dumps(config))
    return Engine(
        EngineConfig(checkpoint_path=str(folder), device="cpu", kv_cache_memory_bytes=1 << 20, max_model_len=64)
    )


def test_another_dtype_than_the_checkpoint_s_is_told(
    folder: Path, tensors: Tensors, caplog: pytest.LogCaptureFixture
) -> None:
    write_safetensors(folder, tensors)
    used = engine_of(folder, fp16=True).ready.dtype  # no CPU has fast products of float16
    assert f"the checkpoint is float16; on this device it runs in {used}" in caplog.text
    caplog.clear()
    assert engine_of(folder, fp32=True).ready.dtype == "float32"
    assert "the checkpoint is" not in caplog.text


def test_a_cache_is_quantised_where_the_config_asks_for_it(folder: Path, tensors: Tensors) -> None:
    write_safetensors(folder, tensors)
    plain, quantized = (engine_of(folder, use_cache_quantization=asked, fp32=True).ready for asked in (False, True))
    assert quantized.num_blocks > 2 * plain.num_blocks
