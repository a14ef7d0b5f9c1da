"""prompts/messages.py and prompts/segments.py."""

from __future__ import annotations

import pytest

from model.contract.tokenizer import Tokenizer
from prompts.messages import FunctionCall, Message, ToolSpec
from prompts.segments import Special, Text, encode


def test_stripping_keeps_spaces_in_front() -> None:
    assert Message("user", "\n\n  a\n b \n\n").stripped() == Message("user", "  a\n b")


def test_stripping_touches_nothing_but_the_content() -> None:
    message = Message("tool", " x ", name=" n ", tool_call_id=" i ")
    assert message.stripped() == Message("tool", " x", name=" n ", tool_call_id=" i ")


@pytest.mark.parametrize(
    ("arguments", "readable"),
    [
        (r'{"city": "\u6ce2\u58eb\u987f", "n": 1}', '{"city": "波士顿", "n": 1}'),
        (r'{"\u57ce": "\ud83d\ude42\uD83D\uDE42 \u00e9"}', '{"城": "🙂🙂 é"}'),
        (r'["\u0041\u000a\u0022\u005c\n\"\\"]', r'["A\u000a\u0022\u005c\n\"\\"]'),
        (r'"\\u0041 \\\u0041 \ud83d \ude42 \ud83d\u0041"', r'"\\u0041 \\A \ud83d \ude42 \ud83dA"'),
        (r"print('\u6ce2')", r"print('\u6ce2')"),
        (r'{"a": "\u6ce2"', r'{"a": "\u6ce2"'),
        (r'"\u6ce"', r'"\u6ce"'),
        ("[" * 100_000 + r"\u6ce2", "[" * 100_000 + r"\u6ce2"),
        ('{"b":2,  "a": 1}', '{"b":2,  "a": 1}'),
    ],
)
def test_escapes_in_arguments_are_written_as_the_characters(arguments: str, readable: str) -> None:
    assert FunctionCall("f", arguments).readable_arguments() == readable


def test_openai_style_tool() -> None:
    spec = ToolSpec.from_dict({"name": "f", "description": "d", "parameters": {"type": "object", "b": 1, "a": "é"}})
    assert spec == ToolSpec("f", "f", "d", '{"type": "object", "b": 1, "a": "é"}')


def test_qwen_style_tool() -> None:
    spec = ToolSpec.from_dict(
        {
            "name_for_human": "搜索",
            "name_for_model": "search",
            "description_for_model": "查",
            "parameters": [{"name": "q"}],
        }
    )
    assert spec == ToolSpec("search", "搜索", "查", '[{"name": "q"}]')


def test_qwen_style_without_a_human_name_uses_the_other() -> None:
    assert ToolSpec.from_dict({"name_for_model": "f", "parameters": {}}).name_for_human == "f"


def test_mixed_style_prefers_the_names_for_the_model() -> None:
    spec = ToolSpec.from_dict({"name": "n", "name_for_model": "m", "description": "d", "description_for_model": "e"})
    assert (spec.name_for_model, spec.name_for_human, spec.description) == ("m", "n", "e")


@pytest.mark.parametrize("function", [{"name": "f"}, {"name": "f", "description": None, "parameters": None}])
def test_absent_and_null_mean_the_same(function: dict[str, object]) -> None:
    assert ToolSpec.from_dict(function) == ToolSpec("f", "f", "", '{"type": "object", "properties": {}}')


@pytest.mark.parametrize("function", [{}, {"name": ""}, {"name": None, "description": "d"}])
def test_a_tool_needs_a_name(function: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="name"):
        ToolSpec.from_dict(function)


def test_segments_never_share_a_token(tokenizer: Tokenizer) -> None:
    apart = encode([Text("hel"), Text("lo")], tokenizer.encode, tokenizer.special_id)
    assert apart == tokenizer.encode("hel") + tokenizer.encode("lo") != tokenizer.encode("hello")


def test_text_is_never_a_control_token(tokenizer: Tokenizer) -> None:
    names = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|extra_0|>"]
    assert encode([Special(n) for n in names], tokenizer.encode, tokenizer.special_id) == [
        151644,
        151645,
        151643,
        151646,
    ]
    ids = encode([Text("".join(names))], tokenizer.encode, tokenizer.special_id)
    assert max(ids) < tokenizer.num_ranks
