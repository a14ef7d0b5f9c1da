"""Both spellings of config.json, every refusal, and the NTK factor against its formula."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.contract.config import ModelConfig, QuantizationConfig
from model.contract.errors import CheckpointError
from model.contract.files.json_file import read_json
from model.contract.files.model_config import read_model_config
from model.contract.files.vocabulary import read_ranks
from model.contract.memory_plan import plan_memory
from tests.support.paths import GOLDEN
from tests.support.published_config import PUBLISHED_CONFIG

FIRST_RELEASE_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "ffn_hidden_size",
    "max_position_embeddings": "n_positions",
}
FIRST_RELEASE = {FIRST_RELEASE_NAMES.get(name, name): value for name, value in PUBLISHED_CONFIG.items()}


def read(tmp_path: Path, raw: dict[str, Any], **changes: Any) -> ModelConfig:
    """Reads a config with some fields changed; a change to None removes the field."""
    fields = {name: value for name, value in (raw | changes).items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    return read_model_config(tmp_path)


def refusal(tmp_path: Path, **changes: Any) -> str:
    with pytest.raises(CheckpointError) as e:
        read(tmp_path, PUBLISHED_CONFIG, **changes)
    message = str(e.value)
    assert "\n" not in message
    assert str(tmp_path / "config.json") in message
    return message


def test_todays_spelling(tmp_path: Path) -> None:
    assert read(tmp_path, PUBLISHED_CONFIG) == ModelConfig(
        vocab_size=151936,
        hidden_size=2048,
        num_layers=24,
        num_heads=16,
        head_dim=128,
        intermediate_size=11008,
        seq_length=8192,
        rotary_base=10000.0,
        rotary_dim=128,
        layer_norm_epsilon=1e-6,
        use_dynamic_ntk=True,
        use_logn_attn=True,
        has_bias=False,
        declared_dtype="bfloat16",
        quantization=None,
        max_positions=8192,
    )


def test_the_first_releases_spelling_means_the_same(tmp_path: Path) -> None:
    assert read(tmp_path, FIRST_RELEASE) == read(tmp_path, PUBLISHED_CONFIG)


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in GOLDEN.glob("*/config.json")))
def test_golden_configs_are_read(folder: str) -> None:
    config = read_model_config(GOLDEN / folder)
    assert config.seq_length == 64
    assert (config.quantization is not None) == folder.startswith("gptq")


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ({"bf16": True}, "bfloat16"),
        ({"bf16": False, "fp16": True}, "float16"),
        ({"bf16": False, "fp32": True}, "float32"),
        ({"bf16": False}, None),
        ({"bf16": None, "fp16": None, "fp32": None}, None),
    ],
)
def test_declared_dtype(tmp_path: Path, flags: dict[str, Any], dtype: str | None) -> None:
    assert read(tmp_path, PUBLISHED_CONFIG, **flags).declared_dtype == dtype


def test_fields_that_may_be_absent(tmp_path: Path) -> None:
    absent = ["kv_channels", "rotary_emb_base", "rotary_pct", "layer_norm_epsilon", "no_bias", "use_dynamic_ntk"]
    absent += ["use_logn_attn", "seq_length", "tie_word_embeddings"]
    config = read(tmp_path, PUBLISHED_CONFIG, **dict.fromkeys(absent))
    assert config.head_dim == 128
    assert config.rotary_base == 10000.0
    assert config.rotary_dim == 128
    assert config.layer_norm_epsilon == 1e-6
    assert not config.has_bias
    assert not config.use_dynamic_ntk
    assert not config.use_logn_attn
    assert config.seq_length == 8192, "max_position_embeddings stands in"
    assert read(tmp_path, PUBLISHED_CONFIG, seq_length=None, max_position_embeddings=None).seq_length == 2048


def test_padded_vocab_size_is_that_of_the_tensors(tmp_path: Path) -> None:
    assert read(tmp_path, PUBLISHED_CONFIG, vocab_size=151851, padded_vocab_size=151936).vocab_size == 151936


def test_biases_of_the_other_linears(tmp_path: Path) -> None:
    assert read(tmp_path, PUBLISHED_CONFIG, no_bias=False).has_bias


def test_partial_rotary(tmp_path: Path) -> None:
    assert read(tmp_path, PUBLISHED_CONFIG, rotary_pct=0.25).rotary_dim == 32
    assert read(tmp_path, PUBLISHED_CONFIG, rotary_pct=0.26).rotary_dim == 32, "always even"


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"])
def test_a_missing_number_is_named_in_both_spellings(tmp_path: Path, name: str) -> None:
    message = refusal(tmp_path, **{name: None})
    assert repr(name) in message
    assert repr(FIRST_RELEASE_NAMES[name]) in message
    assert "missing" in message


def test_a_missing_vocab_size(tmp_path: Path) -> None:
    assert "'vocab_size' is missing" in refusal(tmp_path, vocab_size=None)


@pytest.mark.parametrize("value", [0, -1, 2.5, "2048", True, [2048]])
@pytest.mark.parametrize("name", ["hidden_size", "seq_length", "kv_channels", "vocab_size", "padded_vocab_size"])
def test_a_number_that_is_none(tmp_path: Path, name: str, value: Any) -> None:
    message = refusal(tmp_path, **{name: value})
    assert repr(name) in message
    assert repr(value) in message


@pytest.mark.parametrize("value", [0, -1.0, "10000", math.nan, math.inf, False])
@pytest.mark.parametrize("name", ["rotary_emb_base", "layer_norm_epsilon", "rotary_pct"])
def test_a_real_number_that_is_none(tmp_path: Path, name: str, value: Any) -> None:
    assert repr(name) in refusal(tmp_path, **{name: value})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"kv_channels": 64}, "num_attention_heads 16 x kv_channels 64 is not hidden_size 2048"),
        ({"intermediate_size": 11007}, "must be even"),
        ({"kv_channels": 1, "hidden_size": 16}, "must be even"),
        ({"rotary_pct": 1.5}, "rotary_pct must be in (0, 1], not 1.5"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"model_type": "qwen2"}, "model_type is 'qwen2'"),
        ({"model_type": None}, "model_type is None"),
        ({"quantization_config": {"quant_method": "hqq", "bits": 4}}, "'hqq' is not supported"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config is incomplete"),
        ({"quantization_config": {"bits": "many"}}, "quantization_config is incomplete or malformed"),
        ({"quantization_config": "gptq"}, "'gptq' is not supported"),
    ],
)
def test_refusals(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    assert expected in refusal(tmp_path, **changes)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00\x01", '{"a": 1', "[" * 100_000])
def test_a_file_that_is_no_json_object(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(CheckpointError) as e:
        read_model_config(tmp_path)
    assert str(path) in str(e.value)
    assert "\n" not in str(e.value)


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'{"model_type": "\xff"}')
    with pytest.raises(CheckpointError, match="not valid JSON"):
        read_model_config(tmp_path)


@pytest.mark.parametrize(("name", "read"), [("config.json", read_json), ("qwen.tiktoken", read_ranks)])
def test_a_sparse_file_is_not_read(tmp_path: Path, name: str, read: Callable[[Path], object]) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(1 << 36)
    with pytest.raises(CheckpointError, match=rf"{name}: is larger than"):
        read(tmp_path / name)


def test_no_file(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(CheckpointError, match=r"config\.json: no such file; is .* a checkpoint folder"):
        read_model_config(tmp_path)
    with pytest.raises(CheckpointError, match="no such file"):
        read_model_config(tmp_path / "nowhere")


def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_model_config(tmp_path)


def test_gptq_is_described(tmp_path: Path) -> None:
    raw = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
    expected = QuantizationConfig(quant_method="gptq", bits=4, group_size=128)
    assert read(tmp_path, PUBLISHED_CONFIG, quantization_config=raw).quantization == expected


def test_gptq_in_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "quantize_config.json").write_text(json.dumps({"bits": 8, "group_size": -1, "sym": False}))
    expected = QuantizationConfig(quant_method="gptq", bits=8, group_size=-1)
    assert read(tmp_path, PUBLISHED_CONFIG).quantization == expected


@pytest.mark.parametrize("layout", ["marlin", 2, ["gptq"]])
def test_gptq_in_a_layout_that_is_not_read(tmp_path: Path, layout: object) -> None:
    raw = {"quant_method": "gptq", "bits": 4, "checkpoint_format": layout}
    with pytest.raises(CheckpointError, match=r"in the format .* is not supported; 'gptq' and 'gptq_v2' are"):
        read(tmp_path, PUBLISHED_CONFIG, quantization_config=raw)


@pytest.mark.parametrize("seq_length", [64, 2048, 8192])
def test_rope_alpha_at_its_boundaries(tmp_path: Path, seq_length: int) -> None:
    config = read(tmp_path, PUBLISHED_CONFIG, seq_length=seq_length)
    # alpha is 2**k - 1 on (seq_length * 2**(k - 2), seq_length * 2**(k - 1)], k >= 2
    table = [(1, 1.0), (seq_length // 2, 1.0), (seq_length // 2 + 1, 1.0), (seq_length, 1.0)]
    for doublings in range(5):
        longest = seq_length * 2**doublings
        table += [(longest + 1, 2.0 ** (doublings + 2) - 1), (2 * longest, 2.0 ** (doublings + 2) - 1)]
    assert [(length, config.rope_alpha(length)) for length, _ in table] == table


def test_rope_alpha_is_the_published_formula_everywhere(tmp_path: Path) -> None:
    config = read(tmp_path, PUBLISHED_CONFIG, seq_length=64)
    for length in range(1, 64 * 40):
        published = max(2 ** math.ceil(math.log(length / 64, 2) + 1) - 1, 1)
        assert config.rope_alpha(length) == published, length


def test_rope_alpha_without_ntk(tmp_path: Path) -> None:
    assert read(tmp_path, PUBLISHED_CONFIG, use_dynamic_ntk=False).rope_alpha(100_000) == 1.0


@pytest.mark.parametrize(
    ("seq_length", "use_dynamic_ntk", "expected"),
    [
        (2048, True, 8192),
        (8192, True, 32768),
        (10000, True, 32768),
        (65536, True, 65536),
        (32768, False, 32768),
        (2048, False, 2048),
    ],
)
def test_default_max_model_len(tmp_path: Path, seq_length: int, use_dynamic_ntk: bool, expected: int) -> None:
    config = read(
        tmp_path,
        PUBLISHED_CONFIG,
        seq_length=seq_length,
        use_dynamic_ntk=use_dynamic_ntk,
        max_position_embeddings=seq_length,
    )
    assert config.default_max_model_len == expected


@pytest.mark.parametrize("use_dynamic_ntk", [False, True])
@pytest.mark.parametrize(("declared", "expected"), [(16384, 16384), (40000, 32768)])
def test_what_the_file_declares_is_the_default(
    tmp_path: Path, use_dynamic_ntk: bool, declared: int, expected: int
) -> None:
    config = read(
        tmp_path, PUBLISHED_CONFIG, seq_length=2048, use_dynamic_ntk=use_dynamic_ntk, max_position_embeddings=declared
    )
    assert config.default_max_model_len == expected


# -- what is odd in a config, and how it is understood


@pytest.mark.parametrize(
    ("wrong", "right"), [("use_dynamc_ntk", "use_dynamic_ntk"), ("use_long_attn", "use_logn_attn")]
)
def test_misspelt_keys_of_the_published_cards(wrong: str, right: str, tmp_path: Path) -> None:
    config = read(tmp_path, PUBLISHED_CONFIG, **{right: None, wrong: True})
    assert (config.use_dynamic_ntk, config.use_logn_attn) == (True, True)
    assert config.remarks == (f"config.json says {wrong!r}: taken for {right!r}",)
    assert not read(tmp_path, PUBLISHED_CONFIG, **{right: True, wrong: True}).remarks
    config = read(tmp_path, PUBLISHED_CONFIG, **{right: False, wrong: True})
    assert [config.use_dynamic_ntk, config.use_logn_attn].count(False) == 1
    assert f"{right!r}: False, which counts" in config.remarks[0]


def test_several_dtype_flags(tmp_path: Path) -> None:
    config = read(tmp_path, PUBLISHED_CONFIG, bf16=True, fp16=True)
    assert config.declared_dtype == "bfloat16"
    assert config.remarks == ("config.json sets bf16 and fp16 at once: bfloat16 is used; --dtype decides",)
    assert not read(tmp_path, PUBLISHED_CONFIG).remarks


def test_a_quantised_cache_is_what_the_file_asks_for(tmp_path: Path) -> None:
    config = read(tmp_path, PUBLISHED_CONFIG, use_cache_quantization=True)
    assert plan_memory(config).kv_dtype == "int8"
    assert plan_memory(config, kv_cache_dtype="bfloat16").kv_dtype == "bfloat16"
    assert "--kv-cache-dtype" in config.remarks[0]
    config = read(tmp_path, PUBLISHED_CONFIG, use_cache_quantization=False)
    assert plan_memory(config).kv_dtype == "bfloat16" and not config.remarks


@pytest.mark.parametrize(("part", "name"), [("visual", "Qwen-VL"), ("audio", "Qwen-Audio")])
def test_other_models_of_this_type_are_refused_by_name(part: str, name: str, tmp_path: Path) -> None:
    assert f"this is a {name} checkpoint" in refusal(tmp_path, **{part: {"layers": 48}})
