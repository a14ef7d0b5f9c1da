"""`qwen-server convert`: transformers computes the same on what it writes, and the way back loses nothing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from model.contract.errors import CheckpointError, ConfigError
from model.contract.files.linears import QWEN2_LINEARS
from model.contract.files.vocabulary import read_vocabulary
from model.contract.tokenizer import Tokenizer
from model.quantization.offline import checkpoint_writer
from model.quantization.offline.dense_weights import DenseWeights
from prompts import chatml, segments
from prompts.messages import Message
from tests.support.engine_driver import LoadedModel
from tests.tools.tuning.checkpoints import DEMO, FOLDERS, GOLDEN, TEXTS, converted, real_ranks, theirs, with_vocabulary
from tools.convert.names import qwen2_targets
from tools.convert.run import main
from tools.convert.tokenizer_files import read_tokenizer_files, tokenizer_config, tokenizer_json

SAMPLE = (DEMO, *(GOLDEN / name for name in ("first_release_names_bf16", "gptq_int4_asym_desc_act")))
QUESTIONS = ("Hello!", "What is 12 + 30?", "你好", "My name is Anna. What is my name?")


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**read_json(path), **changes}))


def tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_transformers_computes_the_same_within_the_trained_length(tmp_path: Path) -> None:
    for name in FOLDERS:
        ours = LoadedModel(GOLDEN / name)
        other = theirs(converted(GOLDEN / name, tmp_path / name, dtype="float32"))
        assert other.config.max_position_embeddings == ours.config.seq_length
        for case in read_json(GOLDEN / name / "cases.json")["cases"]:
            ids = [*case["prompt"], *case["greedy"]][: ours.config.seq_length]
            with torch.no_grad():
                found = other(torch.tensor([ids])).logits[0]
            assert (found - ours.logits(ids)).abs().max() < 1e-4


def test_the_same_conversation_has_the_same_greedy_reply(tmp_path: Path) -> None:
    folder = converted(DEMO, tmp_path / "qwen2")
    ours, other, tokenizer = LoadedModel(DEMO), theirs(folder), tokenizer_of(folder)
    tiktoken = Tokenizer.from_folder(DEMO)
    for question in QUESTIONS:
        ids = segments.encode(chatml.render([Message("user", question)]), tiktoken.encode, tiktoken.special_id)
        messages = [{"role": "user", "content": question}]
        assert tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] == ids
        reply = other.generate(torch.tensor([ids]), max_new_tokens=24)[0, len(ids) :].tolist()
        logits = ours.logits([*ids, *reply])
        assert logits[len(ids) - 1 : -1].argmax(-1).tolist() == reply
        assert len(reply) == 24 or reply[-1] == tiktoken.im_end_id


@pytest.mark.parametrize("folder", SAMPLE, ids=lambda path: path.name)
def test_there_and_back(folder: Path, tmp_path: Path) -> None:
    """In the dtype it came in: what is stored there comes back to the bit."""
    back = converted(converted(folder, tmp_path / "there"), tmp_path / "back", "qwen")
    before, after = DenseWeights(folder), DenseWeights(back)
    for old, new in zip(before.groups(), after.groups(), strict=True):
        assert old.keys() == new.keys()
        assert all(torch.equal(tensor.to(new[name].dtype), new[name]) for name, tensor in old.items())
    config, again = before.config, after.config
    assert again.declared_dtype == str(before.dtype).removeprefix("torch.")
    same = ("seq_length", "max_positions", "use_dynamic_ntk", "use_logn_attn", "rotary_base", "layer_norm_epsilon")
    assert [getattr(config, name) for name in same] == [getattr(again, name) for name in same]
    assert read_vocabulary(folder) == read_vocabulary(back)
    ids = [(7 * n) % 250 for n in range(200)]
    tolerance = 2e-2 if before.is_expanded else 1e-6
    assert torch.allclose(LoadedModel(folder).logits(ids), LoadedModel(back).logits(ids), atol=tolerance)
    original = read_json(folder / "generation_config.json")
    assert original.items() <= read_json(back / "generation_config.json").items()


def write_tokenizer(folder: Path, ranks: dict[bytes, int]) -> Any:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(ranks)))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(2048, chats=True)))
    return tokenizer_of(folder)


def check_texts(tokenizer: Any, ours: Tokenizer) -> None:
    for case in TEXTS:
        text = case["text"]
        assert tokenizer(text, split_special_tokens=True)["input_ids"] == ours.encode(text), text
        assert tokenizer(text)["input_ids"] == ours.encode_with_special_tokens(text), text
        assert tokenizer.decode(ours.encode(text)) == ours.decode(ours.encode(text))


def test_golden_texts_have_the_same_ids(tmp_path: Path) -> None:
    """With the published vocabulary's first ranks, which are a vocabulary, too."""
    ranks = {token: rank for token, rank in real_ranks().items() if rank < 20000}
    tokenizer = write_tokenizer(tmp_path, ranks)
    check_texts(tokenizer, Tokenizer(ranks))
    tokenizer.save_pretrained(tmp_path)  # as whoever trained it on does
    assert read_tokenizer_files(tmp_path) == ranks


@pytest.mark.slow
def test_golden_texts_have_the_published_ids(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path, real_ranks())
    check_texts(tokenizer, Tokenizer(real_ranks()))
    for case in TEXTS:
        assert tokenizer(case["text"])["input_ids"] == case["ids_with_special_tokens"]


def test_an_expanded_vocabulary(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}
    for token in (b"ab", b"abc", b"he", b"ll", b"hell", b"hello"):
        ranks[token] = len(ranks)
    start = len(ranks) + 208
    ranks |= {b"abcd": start, b"abcdef": start + 1, b"abcde": start + 2, b"xyzzy": start + 3}
    source = with_vocabulary(GOLDEN / "ntk_logn_fp32", tmp_path / "source", ranks)
    folder = converted(source, tmp_path / "qwen2")
    ours, tokenizer = Tokenizer.from_folder(source), tokenizer_of(folder)
    assert "1 tokens of the vocabulary, such as b'xyzzy'" in caplog.text
    assert ours.encode("abcdef") == [start + 1]
    for text in ("abcdef", "abcde", "abcd hello", "xyzzya", "<|extra_204|>abcd<|im_end|>"):
        assert tokenizer(text)["input_ids"] == ours.encode_with_special_tokens(text)
    assert PreTrainedTokenizerFast.from_pretrained(folder)("xyzzy")["input_ids"] == ours.encode("xyzzy")
    assert tokenizer.eos_token_id == ours.im_end_id
    assert read_vocabulary(converted(folder, tmp_path / "back", "qwen")) == ranks


def test_shards_and_older_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in .bin, written as several shards; no generation_config.json, and a base model."""
    source = tmp_path / "source"
    shutil.copytree(GOLDEN / "ntk_logn_fp32", source)
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    edit_json(source / "generation_config.json", chat_format="raw")
    monkeypatch.setattr(checkpoint_writer, "_MAX_SHARD_BYTES", 1 << 20)
    folder = converted(source, tmp_path / "qwen2")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    tokenizer = Tokenizer.from_folder(source)
    assert read_json(folder / "generation_config.json")["eos_token_id"] == [tokenizer.endoftext_id]
    back = converted(folder, tmp_path / "back", "qwen")
    assert torch.equal(LoadedModel(source).logits([1, 2, 3]), LoadedModel(back).logits([1, 2, 3]))
    assert read_json(back / "generation_config.json")["chat_format"] == "raw"


def test_a_foreign_qwen2_of_this_architecture(tmp_path: Path) -> None:
    """Without what a conversion of ours wrote into config.json, and with a tied output layer."""
    folder = converted(DEMO, tmp_path / "qwen2")
    config = read_json(folder / "config.json")
    del config["first_generation_qwen"]
    del config["rope_theta"]
    config |= {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if k != "lm_head.weight"}, folder / "model.safetensors")
    back = LoadedModel(converted(folder, tmp_path / "back", "qwen"))
    assert (back.config.rotary_base, back.config.use_dynamic_ntk, back.config.seq_length) == (5000.0, False, 2048)
    assert read_json(tmp_path / "back" / "generation_config.json")["chat_format"] == "chatml"
    assert torch.allclose(back.logits(list(range(40))), theirs(folder)(torch.arange(40)[None]).logits[0], atol=1e-3)


def test_what_a_layout_cannot_say_is_refused(tmp_path: Path) -> None:
    qwen2 = converted(DEMO, tmp_path / "qwen2")
    refusals = {
        "groups queries": {"num_key_value_heads": 2},
        "scales its positions": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        "sliding window": {"use_sliding_window": True},
        "is quantised": {"quantization_config": {"quant_method": "gptq"}},
        "model_type is 'llama'": {"model_type": "llama"},
        "'hidden_size' must be": {"hidden_size": "256"},
    }
    for number, (message, changes) in enumerate(refusals.items()):
        folder = tmp_path / f"other-{number}"
        shutil.copytree(qwen2, folder)
        edit_json(folder / "config.json", **changes)
        with pytest.raises(CheckpointError, match=message):
            converted(folder, tmp_path / "never", "qwen")
    raw = read_json(qwen2 / "tokenizer.json")
    for message, changed in {
        "by another pattern": {**raw, "pre_tokenizer": {"type": "Whitespace"}},
        "order of its ids": {**raw, "model": {**raw["model"], "merges": raw["model"]["merges"][::-1]}},
        "cannot say it": {**raw, "added_tokens": [*raw["added_tokens"], {"id": 4352, "content": "<tool>"}]},
        "where first-generation Qwen has": {**raw, "added_tokens": raw["added_tokens"][1:]},
    }.items():
        (qwen2 / "tokenizer.json").write_text(json.dumps(changed))
        with pytest.raises(CheckpointError, match=message):
            converted(qwen2, tmp_path / "never", "qwen")
    shutil.copytree(DEMO, tmp_path / "partly")
    edit_json(tmp_path / "partly" / "config.json", rotary_pct=0.5)
    with pytest.raises(CheckpointError, match="rotary_pct"):
        converted(tmp_path / "partly", tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_a_bias_without_a_place_is_refused_and_zeros_are_left_out(tmp_path: Path) -> None:
    source = tmp_path / "gptq"
    shutil.copytree(GOLDEN / "gptq_int4", source)
    tensors = load_file(source / "model.safetensors")
    converted(source, tmp_path / "fine")
    tensors["transformer.h.1.mlp.w1.bias"][3] = 1.0
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"transformer\.h\.1\.mlp\.w1\.bias.*no such bias"):
        converted(source, tmp_path / "never")
    assert list(tmp_path.glob("*never*")) == []


def test_numbers_beyond_a_dtype_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(GOLDEN / "plain_theta1e6_fp32", source)
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"][0, 0] = 1e6
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"'lm_head\.weight' has values beyond float16"):
        converted(source, tmp_path / "never", dtype="float16")
    del tensors["transformer.h.1.ln_2.weight"]
    save_file({**tensors, "stranger": torch.ones(1)}, source / "model.safetensors")
    with pytest.raises(CheckpointError, match="unexpected tensor 'stranger'"):
        converted(source, tmp_path / "never")


def test_a_converted_checkpoint_is_told_how_it_is_served(tmp_path: Path) -> None:
    folder = converted(GOLDEN / "gptq_int8", tmp_path / "qwen2")
    with pytest.raises(CheckpointError, match=r"`qwen-server convert \S+ OUT --to qwen` writes the one that is served"):
        LoadedModel(folder)


def test_the_target_is_empty_or_new(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    converted(GOLDEN / "gptq_int8", tmp_path / "empty")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").touch()
    with pytest.raises(ConfigError, match="exists already"):
        converted(GOLDEN / "gptq_int8", tmp_path / "full")
    assert os.listdir(tmp_path / "full") == ["notes"]


def test_the_process_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["convert", str(DEMO), str(tmp_path / "out"), "--to", "qwen"])
    assert main() == 1
    assert "model_type is 'qwen'; what `--to qwen` takes is transformers' Qwen2\n" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["convert", str(DEMO), str(tmp_path / "out"), "--to", "qwen2"])
    monkeypatch.setattr("tools.convert.run.qwen2_tensors", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main() == 130
    assert capsys.readouterr().err.endswith("qwen-server: interrupted; nothing was written\n")
    assert os.listdir(tmp_path) == []


def test_published_names_of_linears() -> None:
    assert qwen2_targets("c_proj") == ["o_proj", "down_proj"]
    assert qwen2_targets("w1") == ["up_proj"] and qwen2_targets("v_proj") == ["v_proj"]
    assert qwen2_targets("mlp.c_proj") == ["down_proj"] and qwen2_targets("wte") == []
    assert sum(len(qwen2_targets(name)) for name in QWEN2_LINEARS) == 7
