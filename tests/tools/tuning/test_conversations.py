"""What `finetune` reads, and what of it is learned: behind the prompts that the server makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.contract.errors import ConfigError
from prompts import segments
from prompts.messages import FunctionCall, Message, ToolSpec
from prompts.react.render import render
from prompts.segments import Text
from server.conversion.readers.chat import read_chat
from server.wire.shapes.chat import ChatCompletionRequest
from tests.support.segments import display
from tests.support.vocabulary import byte_tokenizer
from tools.finetune.conversations import Conversation, read_conversations
from tools.finetune.examples import IGNORED, Example, examples_of

TOKENIZER = byte_tokenizer()
TOOLS = [
    {"type": "function", "function": {"name": "lamp", "description": "Set a lamp.", "parameters": {"type": "object"}}}
]


def call(call_id: str, arguments: Any = "{}") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "lamp", "arguments": arguments}}


def result(call_id: str, content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


QUESTION = {"role": "user", "content": "Light, please."}
EPISODE = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A lamp."},
    QUESTION,
    {"role": "assistant", "content": "Two lamps.", "tool_calls": [call("a"), call("b", {"level": 9, "ort": "Küche"})]},
    result("b", "Thought: is on"),
    result("a", ""),
    {"role": "assistant", "content": "Both are on."},
]


def read(tmp_path: Path, entry: Any) -> Conversation:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(entry))
    return read_conversations(path)[0]


def learned(example: Example) -> list[str]:
    """The stretches that are learned, as text."""
    stretches: list[list[int]] = []
    for before, label in zip([IGNORED, *example.labels], example.labels, strict=False):
        if label != IGNORED:
            if before == IGNORED:
                stretches.append([])
            stretches[-1].append(label)
    return [TOKENIZER.decode(ids, show_special_tokens=True) for ids in stretches]


def text(example: Example) -> str:
    return TOKENIZER.decode(example.ids, show_special_tokens=True)


def test_the_published_format(tmp_path: Path) -> None:
    turns = [("user", "Hello"), ("assistant", "Hi!"), ("user", "Bye<|im_end|>"), ("assistant", "So long.")]
    entry = {"id": "1", "conversations": [{"from": role, "value": value} for role, value in turns]}
    (example,) = examples_of(read(tmp_path, entry), TOKENIZER)
    assert learned(example) == ["Hi!<|im_end|>", "So long.<|im_end|>"]
    assert text(example).startswith(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHello"
    )
    assert example.ids.count(TOKENIZER.im_end_id) == 5, "what a user writes is text"


def test_the_system_message_takes_the_default_ones_place(tmp_path: Path) -> None:
    turns = [("system", "Be brief."), ("human", "Hello"), ("gpt", "Hi!")]
    (example,) = examples_of(
        read(tmp_path, {"conversations": [{"from": role, "value": value} for role, value in turns]}), TOKENIZER
    )
    assert "Be brief." in text(example) and "helpful" not in text(example)


def test_calls_are_learned_up_to_the_word_that_ends_them(tmp_path: Path) -> None:
    examples = list(examples_of(read(tmp_path, {"tools": TOOLS, "messages": EPISODE}), TOKENIZER))
    answer = "Thought: I now know the final answer.\nFinal Answer: "
    assert [learned(example) for example in examples] == [
        [f"{answer}A lamp.<|im_end|>", "Thought: Two lamps.\nAction: lamp\nAction Input: {}\nObservation:"],
        [
            ' \nAction: lamp\nAction Input: {"level": 9, "ort": "Küche"}\nObservation:',
            f"{answer.removeprefix('Thought:')}Both are on.<|im_end|>",
        ],
    ]
    assert "Observation: Thought: is on\nThought:" in text(examples[1])


def test_every_prompt_is_the_servers(tmp_path: Path) -> None:
    """Cut where a reply is learned from, an example is what the server makes of the messages before."""
    conversation = read(tmp_path, {"tools": TOOLS, "messages": EPISODE})
    prompts = []
    for example in examples_of(conversation, TOKENIZER):
        starts = [n for n, label in enumerate(example.labels) if label != IGNORED and example.labels[n - 1] == IGNORED]
        prompts += [example.ids[:start] for start in starts]
    # What the server is sent: each call with its result at once, as it comes about.
    sent = [*EPISODE[:3], {**EPISODE[3], "tool_calls": [call("a")]}, result("a", "")]
    second = {"role": "assistant", "content": "", "tool_calls": [call("b", '{"level": 9, "ort": "Küche"}')]}
    for ids, messages in zip(
        prompts, (EPISODE[:1], EPISODE[:3], sent, [*sent, second, result("b", "Thought: is on")]), strict=True
    ):
        request = read_chat(ChatCompletionRequest.model_validate({"messages": messages, "tools": TOOLS}))
        prompt = render(request.messages, [tool.spec for tool in request.calling.tools])
        assert ids == segments.encode(prompt.segments, TOKENIZER.encode, TOKENIZER.special_id)


def test_messages_of_weight_0_are_shown_and_not_learned(tmp_path: Path) -> None:
    messages = [QUESTION, {"role": "assistant", "content": "No.", "weight": 0}, QUESTION]
    messages += [{"role": "assistant", "content": [{"type": "text", "text": "Yes."}], "weight": 1}]
    (example,) = examples_of(read(tmp_path, {"messages": messages}), TOKENIZER)
    assert learned(example) == ["Yes.<|im_end|>"] and "No.<|im_end|>" in text(example)
    calls = [QUESTION, {"role": "assistant", "tool_calls": [call("a"), call("b")], "weight": 0}, result("a", "x")]
    calls += [result("b", "y"), {"role": "assistant", "content": "Done."}]
    examples = list(examples_of(read(tmp_path, {"messages": calls, "functions": [TOOLS[0]["function"]]}), TOKENIZER))
    assert [learned(example)[-1].endswith("Done.<|im_end|>") for example in examples] == [True]


WORDS = st.sampled_from(
    ("", " ", "\n", "Thought:", "Final Answer: x", "\nObservation: y", "lamp", "你好", "Action:", "a b")
)
PIECES = st.lists(WORDS, max_size=4).map("".join)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    messages: list[Message] = [Message("system", draw(PIECES))] if draw(st.booleans()) else []
    for turn in range(draw(st.integers(1, 3))):
        messages.append(Message("user", f"Q{draw(PIECES)}"))
        for step in range(draw(st.integers(0, 2))):
            calls = [FunctionCall("lamp", "{}", f"{turn}.{step}.{n}") for n in range(draw(st.integers(1, 2)))]
            messages.append(Message("assistant", draw(PIECES), calls=tuple(calls)))
            messages += [Message("tool", draw(PIECES), tool_call_id=made.id) for made in calls]
        messages.append(Message("assistant", draw(PIECES)))
    has_tools = any(message.calls for message in messages) or draw(st.booleans())
    return Conversation(tuple(messages), (ToolSpec.from_dict({"name": "lamp"}),) if has_tools else ())


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(conversations())
def test_whatever_is_said_the_last_reply_is_learned_behind_the_servers_words(conversation: Conversation) -> None:
    *_, example = examples_of(conversation, TOKENIZER)
    last = learned(example)[-1]
    prompt = display(render(conversation.messages[:-1], conversation.tools).segments)
    assert text(example) == prompt + last
    said = render(conversation.messages, conversation.tools, open_turn=False).segments[-2]
    assert isinstance(said, Text) and f"{said.text}<|im_end|>".endswith(last)
    assert last.endswith("<|im_end|>")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "line 3: is not JSON"),
        ("[1]", "line 3: is no object"),
        ("{}", "has neither `conversations` nor `messages`"),
        ('{"conversations": []}', "must be a list of turns"),
        ('{"conversations": [{"from": "bird", "value": "x"}]}', r"conversations\[0\]\.from` is 'bird'"),
        ('{"conversations": [{"from": "user", "value": 3}]}', r"conversations\[0\]` needs"),
        ('{"conversations": [{"from": "user", "value": "x"}]}', "no reply of the assistant to learn"),
        ('{"conversations": [{"from": "assistant", "value": " "}]}', "is an empty reply"),
        ('{"messages": [{"role": "bird"}]}', r"messages\[0\]` needs a `role`"),
        ('{"messages": [{"role": "user"}]}', r"messages\[0\]\.content` is missing"),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "a list of text parts"),
        ('{"messages": [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]}', "in a row"),
        (
            json.dumps({"messages": [{"role": "assistant", "tool_calls": [call("a")]}]}),
            "`tools`, of which there are none",
        ),
        (json.dumps({"tools": TOOLS, "messages": [result("zz", "x")]}), "'zz' is of no earlier call"),
        (
            json.dumps({"tools": TOOLS, "messages": [{"role": "assistant", "tool_calls": [call("a", "{")]}]}),
            "the arguments are not JSON",
        ),
        (json.dumps({"tools": [3], "messages": [QUESTION]}), r"tools\[0\]`: must be an object"),
        (json.dumps({"messages": [{"role": "assistant", "content": "a", "weight": 2}]}), "weight` must be 0 or 1"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(line: str, message: str, tmp_path: Path) -> None:
    good = json.dumps({"messages": [QUESTION, {"role": "assistant", "content": "Yes."}]})
    path = tmp_path / "data.jsonl"
    path.write_text(f"{good}\n\n{line}\n{good}\n")
    with pytest.raises(ConfigError, match=rf"data\.jsonl, line 3: .*{message}" if "line" not in message else message):
        read_conversations(path)


def test_lists_are_read_with_their_lines(tmp_path: Path) -> None:
    good = {"conversations": [{"from": "user", "value": "x"}, {"from": "assistant", "value": "y"}]}
    path = tmp_path / "data.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([good] * 3, indent=1).encode())
    assert len(read_conversations(path)) == 3
    for content, message in {
        "[\n" + json.dumps(good) + ",\n{}]": "line 3: has neither",
        "[\n" + json.dumps(good) + "\n{}]": "line 3: is not JSON",
        "[\n" + json.dumps(good) + ",\n": "line 3: is not JSON",
        "[] x": "something follows",
        "[]": "holds no conversations",
        "": "holds no conversations",
    }.items():
        path.write_text(content)
        with pytest.raises(ConfigError, match=message):
            read_conversations(path)
    path.write_bytes(b'{"messages": []}\n\xff')
    with pytest.raises(ConfigError, match="line 2: is not UTF-8"):
        read_conversations(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_conversations(tmp_path)
