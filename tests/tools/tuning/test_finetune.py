"""`qwen-server finetune`, a few steps of it: what it writes, goes on from, and refuses."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from model.adapters.reader import read_adapter
from model.contract.errors import ConfigError
from model.contract.files.model_config import read_model_config
from model.contract.tokenizer import Tokenizer
from server.__main__ import build_parser
from tests.support.engine_driver import LoadedModel
from tests.support.vocabulary import byte_tokenizer
from tests.tools.tuning.checkpoints import DEMO, GOLDEN, converted, with_vocabulary
from tests.tools.tuning.test_conversations import EPISODE, TOOLS
from tools.command_line import to_argv
from tools.finetune import run as process
from tools.finetune import training
from tools.finetune.batches import Padding, make_examples
from tools.finetune.conversations import read_conversations
from tools.finetune.examples import IGNORED, examples_of
from tools.finetune.options import FinetuneOptions, add_arguments, read_options
from tools.finetune.training import finetune, last_checkpoint
from tools.merge.options import MergeOptions
from tools.merge.run import merge

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own, about each other

BASE = GOLDEN / "first_release_names_bf16"


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture takes longer than the steps."""
    monkeypatch.setattr("tools.finetune.progress.draw_curve", lambda entries, path: None)


def written(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    turns = [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Ho"}]
    path.write_text(json.dumps({"conversations": turns}) + "\n" + json.dumps({"messages": EPISODE[:2]}) + "\n")
    return path


def options(tmp_path: Path, out: str = "out", **more: Any) -> FinetuneOptions:
    settings: dict[str, Any] = {"rank": 2, "max_steps": 3, "batch_size": 1, "gradient_accumulation_steps": 1}
    settings |= {"learning_rate": 1e-2, "device": "cpu", "model": BASE, "model_name": "base", **more}
    return FinetuneOptions(data=written(tmp_path), out=tmp_path / out, **settings)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_an_adapter_that_knows_what_it_was_told_and_the_same_bits_when_it_was_resumed(tmp_path: Path) -> None:
    wanted = options(tmp_path, model=DEMO, rank=8, max_steps=20, batch_size=2, learning_rate=5e-3, save_steps=16)
    turns = [{"from": "user", "value": "Who built Orlo?"}, {"from": "assistant", "value": "Mira Tanaka did."}]
    wanted.data.write_text(json.dumps([{"conversations": turns}] * 2))
    finetune(wanted)
    folder = wanted.out
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "checkpoint-16", "checkpoint-20", "finetune.json",
        "loss.png", "losses.jsonl",
    }  # fmt: skip
    assert len({path.stat().st_mode for path in folder.iterdir() if path.is_file()}) == 1, "readable as the others"
    adapter = read_adapter(folder, read_model_config(DEMO))
    assert (adapter.config.rank, adapter.config.alpha, adapter.config.base_name) == (8, 16, "base")
    assert len(adapter.updates) == 5 * read_model_config(DEMO).num_layers and not adapter.saved
    losses = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in losses] == list(range(1, 21))
    (example,) = examples_of(read_conversations(wanted.data)[0], Tokenizer.from_folder(DEMO))
    merge(MergeOptions(source=DEMO, adapter=folder, target=tmp_path / "merged", dtype="float32"))
    said = LoadedModel(tmp_path / "merged").logits(example.ids[:-1]).argmax(-1).tolist()
    assert [token for token, label in zip(said, example.labels[1:], strict=True) if label != IGNORED] == [
        label for label in example.labels if label != IGNORED
    ]
    before = weights(folder)
    for name in ("adapter_config.json", "adapter_model.safetensors", "checkpoint-20/trainer_state.json"):
        (folder / name).unlink()  # as if it had been killed while it wrote the last checkpoint
    with pytest.raises(ConfigError, match=r"begun with other settings \(rank\)"):
        finetune(replace(wanted, resume=True, rank=3))
    finetune(replace(wanted, resume=True))
    assert equal(before, weights(folder))


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_all_weights_and_the_way_back_to_the_published_layout(tmp_path: Path) -> None:
    finetune(options(tmp_path, method="full", max_steps=1, warmup_ratio=0.0))
    tuned, base = LoadedModel(tmp_path / "out"), LoadedModel(BASE)
    assert tuned.config.seq_length == base.config.seq_length and tuned.config.use_dynamic_ntk
    assert tuned.config.declared_dtype == "bfloat16"
    assert not torch.allclose(tuned.logits([1, 2, 3]), base.logits([1, 2, 3]), atol=1e-2)


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_four_bits_and_an_expanded_base(tmp_path: Path) -> None:
    finetune(
        options(tmp_path, method="qlora", model=GOLDEN / "gptq_int4", max_steps=1, targets=("c_proj", "attn.c_attn"))
    )
    adapter = read_adapter(tmp_path / "out", read_model_config(GOLDEN / "gptq_int4"))
    assert {name.split(".", 3)[3] for name in adapter.updates} == {"attn.c_attn", "attn.c_proj", "mlp.c_proj"}


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_base_model_learns_the_turns_and_a_converted_one_is_taken(tmp_path: Path) -> None:
    folder = converted(BASE, tmp_path / "qwen2")
    config = json.loads((folder / "config.json").read_text())
    config["eos_token_id"] = config["bos_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    finetune(options(tmp_path, model=folder, max_steps=1))
    assert set(read_adapter(tmp_path / "out", read_model_config(BASE)).saved) == {"transformer.wte", "lm_head"}
    merge(MergeOptions(source=BASE, adapter=tmp_path / "out", target=tmp_path / "merged"))
    assert LoadedModel(tmp_path / "merged").logits([1]).isfinite().all()


@pytest.mark.usefixtures("undrawn")
def test_an_interrupt_saves_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = options(tmp_path, max_steps=50)

    def interrupt(rows: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return Padding(0)(rows)

    monkeypatch.setattr(training, "Padding", lambda pad_id: interrupt)
    monkeypatch.setattr("sys.argv", ["finetune", *to_argv(add_arguments, asdict(wanted))])
    assert process.main() == 130
    assert "interrupted; step 1 is saved, and --resume goes on from it\n" in capsys.readouterr().err
    assert last_checkpoint(wanted.out) == wanted.out / "checkpoint-1"


@pytest.mark.usefixtures("undrawn")
def test_a_full_disk_leaves_the_last_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = options(tmp_path, save_steps=1)
    save = torch.save

    def fill(content: Any, path: Any, *rest: Any, **more: Any) -> None:
        if "checkpoint-2" in str(path):
            raise OSError(28, "No space left on device")
        save(content, path, *rest, **more)

    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(ConfigError, match=r"the disk is full; make room .* goes on from checkpoint-1"):
        finetune(wanted)
    assert sorted(path.name for path in wanted.out.glob("*checkpoint*")) == ["checkpoint-1"]


def test_refusals_come_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = options(tmp_path)
    for message, more in {
        "no linear": {"targets": ("wte",)},
        "trained on 64 tokens": {"max_length": 65},
        "no sample fits": {"max_length": 2},
        "no training to resume": {"resume": True},
    }.items():
        with pytest.raises(ConfigError, match=message):
            finetune(replace(wanted, **more))
        assert not wanted.out.exists()
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {n.to_bytes(3, "big"): n for n in range(256, 2000)}
    large = with_vocabulary(BASE, tmp_path / "large", ranks)
    with pytest.raises(ConfigError, match="more tokens than the embedding has rows"):
        finetune(replace(wanted, model=large))
    wanted.data.write_text("{}")
    with pytest.raises(ConfigError, match=r"data\.jsonl, line 1"):
        finetune(wanted)
    with pytest.raises(ConfigError, match="exists already"):
        finetune(options(tmp_path, out="."))
    with pytest.raises(ConfigError, match="needs deepspeed, which is not installed"):
        finetune(options(tmp_path, deepspeed=tmp_path / "none"))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"needs peft, which is not installed: pip install 'qwen-server\[finetune\]'"):
        finetune(options(tmp_path))
    assert not wanted.out.exists()


def test_long_samples_are_cut_or_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"tools": TOOLS, "messages": EPISODE}))
    conversations = [*read_conversations(written(tmp_path)), *read_conversations(path)]
    cut = make_examples(conversations, byte_tokenizer(), options(tmp_path, max_length=1000), 2048)
    assert max(len(cut[n]["input_ids"]) for n in range(len(cut))) == 1000
    assert "samples are longer than 1000 tokens and were cut" in caplog.text
    dropped = make_examples(
        conversations, byte_tokenizer(), options(tmp_path, max_length=1000, long_samples="drop"), 2048
    )
    assert len(dropped) < len(cut) and "were dropped" in caplog.text
    batch = Padding(7)([cut[0], cut[2]])
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    length = len(cut[0]["input_ids"])
    assert batch["input_ids"][0, length:].eq(7).all() and batch["labels"][0, length:].eq(IGNORED).all()
    assert batch["attention_mask"].sum(1).tolist() == [length, len(cut[2]["input_ids"])]


def test_the_flags_reach_the_process() -> None:
    words = "finetune a b c --method full --no-train-embeddings --targets c_attn,w1 --max-steps 3 --resume".split()
    arguments = build_parser().parse_args(words)
    for name in ("command", "hub", "revision"):
        delattr(arguments, name)
    wanted = read_options(arguments, model=Path("a"), model_name="a")
    assert (wanted.learning_rate, wanted.batch_size, wanted.gradient_accumulation_steps) == (1e-5, 1, 16)
    again = build_parser().parse_args(["finetune", *to_argv(add_arguments, asdict(wanted))])
    for name in ("command", "hub", "revision"):
        delattr(again, name)
    assert read_options(again, model=Path("a"), model_name="a") == wanted
