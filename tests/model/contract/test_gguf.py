"""GGUF files: what their numbers mean, what their metadata says, and that no file brings down who reads it."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file, save_file

from model.backends.weights import GroupedWeight
from model.contract.errors import CheckpointError
from model.contract.files.model_config import read_model_config
from model.contract.gguf.config import gguf_generation
from model.contract.gguf.file import read_gguf
from model.contract.gguf.tensor_names import checkpoint_name, gguf_name
from model.contract.gguf.types import TENSOR_TYPES
from model.contract.gguf.vocabulary import TOKEN_TYPES
from model.contract.memory_plan import plan_memory
from model.contract.tokenizer import Tokenizer
from model.distributed.shard import Cut
from model.quantization.gguf_tensors import read_tensor
from model.quantization.grouped import expand, part_of
from server.conversion.defaults import GenerationDefaults
from tests.support.engine_driver import LoadedModel
from tests.support.gguf_files import (
    BLOCKS,
    Stored,
    exported,
    gguf_bytes,
    plain,
    random_blocks,
    shape_metadata,
    tiny_tensors,
    write_gguf,
)
from tests.support.paths import GOLDEN, ROOT

PROMPT = [72, 101, 108, 108, 111, 32, 119, 111, 114, 108, 100]

# As llama.cpp mixes them, so that each type is somewhere.
MIXES = {
    "Q4_0 and Q4_K": {"token_embd": "Q4_0", "attn_qkv": "Q4_K", "ffn_up": "Q4_0", "ffn_down": "Q4_1", "output": "Q6_K"},
    "Q5": {"token_embd": "Q5_K", "attn_qkv": "Q5_0", "attn_output": "Q5_1", "ffn_gate": "Q5_K", "output": "Q8_0"},
    "Q2_K to Q6_K": {"token_embd": "Q2_K", "attn_qkv": "Q2_K", "ffn_up": "Q3_K", "ffn_down": "Q6_K", "output": "Q4_K"},
    "IQ4 and numbers": {"token_embd": "F32", "attn_qkv": "IQ4_NL", "ffn_up": "IQ4_XS", "output": "F32"},
}


def expanded_numbers(stored: Stored) -> np.ndarray:
    """By the package gguf."""
    kind = gguf.GGMLQuantizationType(stored.type_number)
    rows = np.frombuffer(stored.data, dtype=np.uint8).reshape(*stored.shape[:-1], -1)
    return dequantize(rows, kind).reshape(stored.shape)


def as_folder(
    folder: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Stored], *, vocab_size: int = 512
) -> Path:
    """The same model as a float32 checkpoint in the published layout."""
    folder.mkdir()
    config = {
        "model_type": "qwen",
        "hidden_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "kv_channels": 64,
        "intermediate_size": 512,
        "vocab_size": vocab_size,
        "seq_length": metadata["qwen.context_length"],
        "max_position_embeddings": metadata["qwen.context_length"],
        "rotary_emb_base": 10000.0,
        "layer_norm_epsilon": 1e-6,
        "fp32": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    numbers = {checkpoint_name(name): torch.tensor(expanded_numbers(stored)) for name, stored in tensors.items()}
    save_file(numbers, folder / "model.safetensors")
    return folder


def greedy(model: LoadedModel, num_tokens: int = 6) -> list[int]:
    ids = list(PROMPT)
    for _ in range(num_tokens):
        ids.append(int(model.logits(ids)[-1].argmax()))
    return ids[len(PROMPT) :]


@pytest.mark.parametrize("kind", sorted(BLOCKS))
def test_numbers_equal_the_package_s_to_the_bit(kind: str, tmp_path: Path) -> None:
    stored = random_blocks(kind, 6, 512, seed=3)
    path = write_gguf(tmp_path / "m.gguf", {"general.architecture": "qwen"}, {"output.weight": stored})
    found = read_tensor("output.weight", read_gguf(path).tensors["output.weight"])
    numbers = expand(found, torch.float32) if isinstance(found, GroupedWeight) else found
    assert torch.equal(numbers, torch.tensor(expanded_numbers(stored)))


def test_types_have_the_published_sizes() -> None:
    for number, kind in TENSOR_TYPES.items():
        published = gguf.GGMLQuantizationType(number)
        assert (kind.name, kind.block_size, kind.block_bytes) == (published.name, *gguf.GGML_QUANT_SIZES[published])


@pytest.mark.parametrize("mix", sorted(MIXES))
def test_a_mixed_file_is_its_expanded_checkpoint(mix: str, tmp_path: Path) -> None:
    metadata, tensors = shape_metadata(), tiny_tensors(MIXES[mix])
    path = write_gguf(tmp_path / "m.gguf", metadata, tensors)
    packed, numbers = LoadedModel(path), LoadedModel(as_folder(tmp_path / "folder", metadata, tensors))
    found, expected = packed.logits(PROMPT), numbers.logits(PROMPT)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert greedy(packed) == greedy(numbers)
    assert packed.num_bytes < 0.6 * numbers.num_bytes
    assert plan_memory(packed.config, dtype="float32").weights_bytes == pytest.approx(packed.num_bytes, rel=0.01)


def test_bfloat16_is_near(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", shape_metadata(), tiny_tensors(MIXES["Q4_0 and Q4_K"]))
    exact, rounded = LoadedModel(path).logits(PROMPT), LoadedModel(path, torch.bfloat16).logits(PROMPT)
    assert float((exact - rounded).norm() / exact.norm()) < 0.03


def test_a_rank_has_its_part_of_groups(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {"general.architecture": "qwen"}, {"a": random_blocks("Q4_K", 8, 512, 1)})
    weight = read_tensor("a", read_gguf(path).tensors["a"])
    assert isinstance(weight, GroupedWeight)
    numbers = expand(weight, torch.float32)
    for cut in (Cut(0, 8, ((1, 3), (6, 8))), Cut(1, 512, ((64, 256),))):
        part = part_of(weight, cut)
        assert part is not None and torch.equal(expand(part, torch.float32), cut.of(numbers))
    assert part_of(weight, Cut(1, 512, ((0, 40),))) is None


def test_rows_that_fill_no_block_are_packed(tmp_path: Path) -> None:
    tensors = tiny_tensors({"output": "Q4_1", "token_embd": "Q4_1"})
    tensors |= {name: random_blocks("Q4_1", 500, 256, seed=1) for name in ("output.weight", "token_embd.weight")}
    metadata = shape_metadata()
    packed = LoadedModel(write_gguf(tmp_path / "m.gguf", metadata, tensors))
    numbers = LoadedModel(as_folder(tmp_path / "folder", metadata, tensors, vocab_size=500))
    expected = numbers.logits(PROMPT)
    assert torch.allclose(packed.logits(PROMPT), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_what_no_kernel_takes_is_expanded_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "m.gguf", shape_metadata(), tiny_tensors({}))
    expected = LoadedModel(path).logits(PROMPT)
    assert "kept as numbers" not in caplog.text
    monkeypatch.setattr("model.backends.torch_backend.make_grouped_linear", lambda *_, **__: None)
    expanded = LoadedModel(path)
    assert torch.allclose(expanded.logits(PROMPT), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert "11 quantised weights are kept as numbers" in caplog.text


def test_split_files_are_one_model(tmp_path: Path) -> None:
    tensors = tiny_tensors(MIXES["Q5"])
    whole = write_gguf(tmp_path / "whole.gguf", shape_metadata(), tensors)
    names = sorted(tensors)
    split = {"split.count": 2, "split.tensors.count": len(tensors)}
    parts = [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    write_gguf(parts[0], shape_metadata(**split), {name: tensors[name] for name in names[:9]})
    write_gguf(parts[1], {"split.no": 1, **split}, {name: tensors[name] for name in names[9:]})
    expected = LoadedModel(whole).logits(PROMPT)
    for part in parts:
        assert torch.equal(LoadedModel(part).logits(PROMPT), expected)
    parts[1].unlink()
    with pytest.raises(CheckpointError, match=r"m-00002-of-00002\.gguf: no such file.*is the download complete"):
        read_model_config(parts[0])
    parts[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(CheckpointError, match="one of 2 files of a model; give it the name NAME-00001-of-00002"):
        read_model_config(tmp_path / "renamed.gguf")


def test_the_vocabulary_is_read(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", shape_metadata(), tiny_tensors({}))
    tokenizer = Tokenizer.from_folder(path)
    assert tokenizer.encode("a é\n") == [97, 32, 0xC3, 0xA9, 10]
    assert tokenizer.im_end_id == 258 and tokenizer.num_ranks == 256
    assert tokenizer.decode([104, 105, 300, 480]) == "hi"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"seq_length": 512, "use_dynamic_ntk": False, "use_logn_attn": False, "remarks": 1}),
        ({"qwen.block_count": 24, "qwen.embedding_length": 2048, "qwen.context_length": 8192,
          "qwen.attention.head_count": 16, "qwen.rope.dimension_count": 128},
         {"seq_length": 8192, "use_dynamic_ntk": True, "use_logn_attn": True, "remarks": 1}),
        ({"qwen.block_count": 40, "qwen.embedding_length": 5120, "qwen.context_length": 8192,
          "qwen.attention.head_count": 40, "qwen.rope.dimension_count": 128},
         {"seq_length": 2048, "max_positions": 8192, "use_dynamic_ntk": True, "remarks": 1}),
        ({"qwen.block_count": 32, "qwen.embedding_length": 4096, "qwen.context_length": 6144,
          "qwen.attention.head_count": 32, "qwen.rope.dimension_count": 128},
         {"seq_length": 2048, "use_logn_attn": True}),
        ({"qwen.block_count": 80, "qwen.embedding_length": 8192, "qwen.context_length": 32768,
          "qwen.attention.head_count": 64, "qwen.rope.dimension_count": 128, "qwen.rope.freq_base": 1e6},
         {"seq_length": 32768, "use_dynamic_ntk": False, "rotary_base": 1e6}),
        ({"qwen.seq_length": 128, "qwen.use_dynamic_ntk": True, "qwen.use_logn_attn": True},
         {"seq_length": 128, "use_dynamic_ntk": True, "use_logn_attn": True, "remarks": 0}),
        ({"qwen.rope.scaling.original_context_length": 256}, {"seq_length": 256}),
    ],
)  # fmt: skip
def test_lengths_come_from_the_file_or_the_published_shape(
    changes: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    config = read_model_config(write_gguf(tmp_path / "m.gguf", shape_metadata(**changes), tiny_tensors({})))
    found = {name: getattr(config, name) for name in expected}
    assert found | {"remarks": len(config.remarks)} == {"remarks": len(config.remarks)} | expected


TEMPLATE = "tokenizer.chat_template"


@pytest.mark.parametrize(
    ("changes", "chat_format"),
    [
        ({"general.name": "Qwen-7B-Chat"}, "chatml"),
        ({"general.name": "Qwen 7B"}, "raw"),
        ({"general.name": "qwen-1_8b"}, "raw"),
        ({"general.name": "Qwen 7B", "general.finetune": "Chat"}, "chatml"),
        ({"general.name": "Qwen 7B", TEMPLATE: "{{ '<|im_start|>' }}"}, "chatml"),
        ({"general.name": "mine"}, "chatml"),
        ({"qwen.chat_format": "raw", "general.name": "Qwen-7B-Chat"}, "raw"),
    ],
)
def test_the_chat_format(changes: dict[str, Any], chat_format: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", shape_metadata(**changes), {})
    assert GenerationDefaults.from_folder(path).chat_format == chat_format


def test_sampling_defaults_come_from_the_file(tmp_path: Path) -> None:
    sampling = {"general.sampling.top_p": 0.5, "general.sampling.temp": 0.7, "general.sampling.top_k": 20}
    defaults = GenerationDefaults.from_folder(write_gguf(tmp_path / "m.gguf", shape_metadata(**sampling), {}))
    assert (defaults.top_p, defaults.temperature, defaults.top_k, defaults.eos_token_ids) == (0.5, 0.7, 20, (256,))


def test_names_go_both_ways() -> None:
    for name in ("transformer.wte.weight", "lm_head.weight", "transformer.h.11.attn.c_attn.bias"):
        assert checkpoint_name(gguf_name(name)) == name


# -- files from strangers ---------------------------------------------------------------------------------------------


def with_metadata(**changes: Any) -> bytes:
    return gguf_bytes(shape_metadata(**changes), tiny_tensors({}))


def with_tensor(name: str, stored: Stored | None) -> bytes:
    tensors = tiny_tensors({})
    if stored is None:
        del tensors[name]
    else:
        tensors[name] = stored
    return gguf_bytes(shape_metadata(), tensors)


HUGE = 1 << 62
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "truncated, or not a GGUF file"),
    "other": (b"PK\3\4" + b"x" * 100, "does not begin with GGUF"),
    "version": (gguf_bytes({}, {}, version=1), "version 1 is not read; versions 2 and 3"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "many tensors": (gguf_bytes({}, {}, num_tensors=HUGE), "tensors, which no model has"),
    "many keys": (gguf_bytes({}, {}, num_keys=HUGE), "keys, which no model has"),
    "more keys": (gguf_bytes({}, {}, num_keys=9), "truncated or corrupt"),
    "long key": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, HUGE) + b"x" * 64, "a name of"),
    "long text": (gguf_bytes({"a": struct.pack("<IQ", 8, HUGE)}, {}), "truncated or corrupt"),
    "many texts": (gguf_bytes({"a": struct.pack("<IIQ", 9, 8, HUGE)}, {}), "truncated or corrupt"),
    "many numbers": (gguf_bytes({"a": struct.pack("<IIQ", 9, 12, HUGE)}, {}), "truncated or corrupt"),
    "type of a long key's value": (gguf_bytes({"a" * 9000: struct.pack("<I", 77)}, {}), "the value of 'aaa"),
    "array of arrays": (gguf_bytes({"a": struct.pack("<IIQ", 9, 9, 1)}, {}), "an array of type 9"),
    "type of value": (gguf_bytes({"a": struct.pack("<I", 77)}, {}), "type 77, which GGUF does not have"),
    "alignment": (with_metadata(**{"general.alignment": 0}), "general.alignment is 0"),
    "no architecture": (gguf_bytes({}, {}), "not a model's"),
    "an adapter": (gguf_bytes({"general.architecture": "qwen", "general.type": "adapter"}, {}), "of another kind"),
    "architecture": (gguf_bytes({"general.architecture": "qwen2"}, {}), "Qwen1.5, Qwen2"),
    "llama": (gguf_bytes({"general.architecture": "llama"}, {}), "model_type is 'llama'"),
    "no embedding": (with_tensor("token_embd.weight", None), "no whole model"),
    "tensor type": (with_tensor("output.weight", Stored((512, 256), 4, b"")), "type 4, which is not read"),
    "blocks": (with_tensor("output.weight", Stored((512, 40), 2, b"")), "no whole blocks of Q4_0"),
    "outside": (with_tensor("output.weight", Stored((1 << 40, 1 << 20), 2, b"")), "truncated or corrupt"),
    "zero rows": (with_tensor("output.weight", Stored((0, 256), 2, b"")), r"shape \[0, 256\]"),
    "dimensions": (with_tensor("output.weight", Stored((1,) * 9, 0, b"x" * 4)), "has 9 dimensions"),
    "shape": (with_tensor("output.weight", random_blocks("Q8_0", 512, 128, 0)), "its metadata ask for"),
    "quantised norm": (with_tensor("output_norm.weight", Stored((256,), 8, b"x" * 272)), "not a matrix"),
    "missing": (with_tensor("blk.1.ffn_up.weight", None), "missing tensors: transformer.h.1.mlp.w1.weight"),
    "unexpected": (with_tensor("blk.1.ffn_gate_inp.weight", plain(np.ones(4))), "unexpected tensor"),
    "heads": (with_metadata(**{"qwen.attention.head_count": 3}), "is not hidden_size"),
    "grouped heads": (with_metadata(**{"qwen.attention.head_count_kv": 2}), "other heads for keys"),
    "layers": (with_metadata(**{"qwen.block_count": 1 << 31}), "num_hidden_layers"),
    "text for a number": (with_metadata(**{"qwen.block_count": "two"}), "must be a positive whole number, not 'two'"),
    "no context": (with_metadata(**{"qwen.context_length": 0}), "context_length must be a positive number"),
    "scaled": (with_metadata(**{"qwen.rope.scaling.type": "yarn", "qwen.rope.scaling.factor": 4.0}), "dynamic NTK"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(HOSTILE))
def test_a_hostile_file_ends_in_one_sentence(case: str, tmp_path: Path) -> None:
    data, words = HOSTILE[case]
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=words) as caught:
        LoadedModel(path)
    assert str(path.parent) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 1100


GREAT = 1 << 36
SPARSE = {
    "a text": (struct.pack("<IQ", 8, GREAT), "more metadata"),
    "wanted numbers": (struct.pack("<IIQ", 9, 5, GREAT >> 2), "more metadata"),
    "empty texts": (struct.pack("<IIQ", 9, 8, GREAT >> 3), "more metadata"),
    "numbers nobody wants": (struct.pack("<IIQ", 9, 12, GREAT >> 3), "not a model's"),
}


@pytest.mark.parametrize("case", sorted(SPARSE))
def test_a_sparse_file_takes_neither_memory_nor_time(case: str, tmp_path: Path) -> None:
    """64 GiB of zeros that are nowhere: what the file tells of does fit into it."""
    value, words = SPARSE[case]
    key = TOKEN_TYPES if case == "wanted numbers" else "other"
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes({key: value}, {}))
    with path.open("r+b") as file:
        file.truncate(GREAT + 4096)
    with pytest.raises(CheckpointError, match=words):
        read_gguf(path, frozenset({TOKEN_TYPES})) if "more" in words else read_model_config(path)


def test_a_file_cut_anywhere_ends_in_one_sentence(tmp_path: Path) -> None:
    data = with_metadata()
    path = tmp_path / "m.gguf"
    for length in (*range(0, 400, 9), *range(400, len(data), len(data) // 30)):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"m\.gguf"):
            read_model_config(path)


def test_a_file_with_any_byte_changed_never_fails_otherwise(tmp_path: Path) -> None:
    data = bytearray(gguf_bytes(shape_metadata(), {"token_embd.weight": random_blocks("Q8_0", 512, 256, 0)}))
    path = tmp_path / "m.gguf"
    generator = np.random.default_rng(5)
    for place in (*range(4, 300, 5), *generator.integers(300, 7000, 40).tolist()):
        damaged = bytearray(data)
        damaged[place] = int(generator.integers(0, 256))
        path.write_bytes(damaged)
        for read in (read_model_config, gguf_generation, Tokenizer.from_folder):
            try:
                read(path)
            except CheckpointError as error:
                assert "\n" not in str(error)


VOCABULARY: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "none": (lambda m: m.pop("tokenizer.ggml.tokens"), "byte-level BPE"),
    "no_vocab": (lambda m: m.update({"tokenizer.ggml.model": "no_vocab"}), "'no_vocab'; these models have byte-level"),
    "spm": (lambda m: m.update({"tokenizer.ggml.model": "llama"}), "'llama'; these models have byte-level BPE"),
    "types": (lambda m: m["tokenizer.ggml.token_type"].pop(), "does not tell a type for each"),
    "controls": (lambda m: m["tokenizer.ggml.tokens"].__setitem__(257, "<s>"), "in a row"),
    "twice": (lambda m: m["tokenizer.ggml.tokens"].__setitem__(5, "a"), "stands there twice"),
    "alphabet": (lambda m: m["tokenizer.ggml.tokens"].__setitem__(5, "日"), "alphabet of bytes"),
    "numbers": (lambda m: m.update({"tokenizer.ggml.tokens": [1, 2]}), "byte-level BPE"),
    "no bytes": (lambda m: m["tokenizer.ggml.tokens"].__setitem__(5, "ab"), "have no rank"),
}


@pytest.mark.parametrize("case", sorted(VOCABULARY))
def test_a_strange_vocabulary_ends_in_one_sentence(case: str, tmp_path: Path) -> None:
    change, words = VOCABULARY[case]
    metadata = shape_metadata()
    change(metadata)
    with pytest.raises(CheckpointError, match=words):
        Tokenizer.from_folder(write_gguf(tmp_path / "m.gguf", metadata, {}))


def test_keys_that_nobody_knows_are_skipped(tmp_path: Path) -> None:
    numbers = {f"other.{kind}": struct.pack("<I", kind) + bytes(size)
               for kind, size in {0: 1, 1: 1, 2: 2, 3: 2, 5: 4, 7: 1, 10: 8, 11: 8, 12: 8}.items()}  # fmt: skip
    arrays = {"other.texts": [b"a", b"\xff"], "other.ids": [1, 2, 3]}
    path = write_gguf(tmp_path / "m.gguf", {**numbers, **arrays, **shape_metadata()}, tiny_tensors({}))
    assert read_model_config(path).hidden_size == 256


# -- export -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_type", ["bf16", "q8_0", "q4_0"])
def test_an_export_is_what_the_package_would_write(weight_type: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = exported(tiny_checkpoint, tmp_path / "m.gguf", weight_type)
    weights = load_file(tiny_checkpoint / "model.safetensors")
    for field in gguf.GGUFReader(path).tensors:
        numbers = weights[checkpoint_name(field.name)].float().numpy()
        assert np.array_equal(field.data.tobytes(), quantize(numbers, field.tensor_type).tobytes()), field.name


def test_an_export_is_read_back(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = exported(tiny_checkpoint, tmp_path / "m.gguf", "q8_0")
    original, copy = read_model_config(tiny_checkpoint), read_model_config(path)
    same = ("hidden_size", "num_layers", "intermediate_size", "seq_length", "rotary_base", "use_dynamic_ntk")
    same += ("use_logn_attn", "declared_dtype", "vocab_size", "max_positions", "rotary_dim", "head_dim")
    assert {name: getattr(copy, name) for name in same} == {name: getattr(original, name) for name in same}
    assert copy.layer_norm_epsilon == pytest.approx(original.layer_norm_epsilon) and not copy.remarks
    assert GenerationDefaults.from_folder(path) == GenerationDefaults.from_folder(tiny_checkpoint)
    tokenizers = [Tokenizer.from_folder(folder) for folder in (tiny_checkpoint, path)]
    assert tokenizers[0].encoding._mergeable_ranks == tokenizers[1].encoding._mergeable_ranks
    expected = LoadedModel(tiny_checkpoint).logits(PROMPT)
    assert float((LoadedModel(path).logits(PROMPT) - expected).norm() / expected.norm()) < 0.05


def test_windows_go_along(tiny_checkpoint: Path, tmp_path: Path) -> None:
    source = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, source)
    raw = json.loads((source / "config.json").read_text())
    windows = list(range(64, 64 + raw["num_hidden_layers"]))
    (source / "config.json").write_text(json.dumps({**raw, "window_attn": windows}))
    copy = read_model_config(exported(source, tmp_path / "m.gguf", "bf16"))
    assert list(copy.attention_windows) == windows


def test_quantised_checkpoints_are_not_exported(tmp_path: Path) -> None:
    golden = GOLDEN / "gptq_int4"
    with pytest.raises(CheckpointError, match="is quantised already; export the checkpoint that it was made from"):
        exported(golden, tmp_path / "m.gguf", "q4_0")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_llama_cpp_loads_an_export_and_says_the_same(tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    demo = ROOT / "demo" / "checkpoint"
    path = exported(demo, tmp_path / "m.gguf", "bf16")
    llama = llama_cpp.Llama(str(path), n_ctx=256, verbose=False, logits_all=False)
    tokenizer = Tokenizer.from_folder(path)
    words = "<|im_start|>user\nWhat is 12 + 30?<|im_end|>\n<|im_start|>assistant\n"
    ids = llama.tokenize(words.encode(), add_bos=False, special=True)
    assert ids == tokenizer.encode_with_special_tokens(words)
    model = LoadedModel(path)
    expected = list(ids)
    for _ in range(8):
        expected.append(int(model.logits(expected)[-1].argmax()))
    found = [token for token, _ in zip(llama.generate(ids, temp=0.0), range(8), strict=False)]
    assert found == expected[len(ids) :]
