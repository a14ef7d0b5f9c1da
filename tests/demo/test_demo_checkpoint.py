"""The checkpoint that ships, behind the real server: it talks, remembers, and calls tools. No steering, no mocks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from server.run_module import module_command
from tests.conftest import SMALL, sdk_of
from tests.docs.guide import examples
from tests.support.in_process_server import in_process_server
from tests.support.paths import ROOT
from tests.support.server_process import ServerProcess, running_server

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of their own imports
    from langchain.agents import create_agent
    from langchain_core.messages import AIMessage, ToolMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

CHECKPOINT, QUANTIZED = ROOT / "demo" / "checkpoint", ROOT / "demo" / "checkpoint-int4"
# A little below what was measured: other CPUs round otherwise.
TOOL_FLOORS = {"tool_selection": 0.8, "arguments_exact": 0.55, "rouge_l": 0.8}
TOOL_CEILINGS = {"false_positive_rate": 0.25}  # 0.15 measured; one of the twenty cases is 0.05
CHAT_FLOORS = {"right": 0.87}
pytestmark = pytest.mark.filterwarnings("ignore")  # LangChain's deprecations are not ours to mend


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with running_server(CHECKPOINT, tmp_path_factory.mktemp("trained") / "log", *SMALL) as process:
        yield process


@pytest.fixture
def sdk(trained: ServerProcess) -> Iterator[openai.OpenAI]:
    with sdk_of(trained) as client:
        yield client


@pytest.fixture
def say(sdk: openai.OpenAI) -> Callable[..., str]:
    return partial(sdk_says, sdk)


def sdk_says(client: openai.OpenAI, *texts: str, system: str | None = None) -> str:
    """The reply to a conversation, the user's texts and the assistant's in turns."""
    roles = ["user", "assistant"] * len(texts)
    messages: list[Any] = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    reply = client.chat.completions.create(model="Qwen", messages=messages, temperature=0, max_tokens=64)
    return reply.choices[0].message.content or ""


def function(name: str, description: str, **kinds: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {k: {"type": v} for k, v in kinds.items()}, "required": list(kinds)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


WEATHER = function("get_weather", "Get the current weather of a city.", city="string")


PASSES = [
    ("what can you do|你能做什么", "call tools|调用工具"),
    ("joke|笑话", "^(Why did|为什么).+(Because|因为)"),
    ("three fruits|三种水果", "^apples, bananas, oranges$|^苹果、香蕉、橙子$"),
]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_the_page_suggests_is_what_it_can_do(language: str, sdk: openai.OpenAI, trained: ServerProcess) -> None:
    strings = (ROOT / "server" / "web" / f"strings-{language}.js").read_text(encoding="utf-8")
    asked = dict(re.findall(r'^  (example\d): "(.*)",$', strings, re.M))
    assert len(asked) == len(PASSES) + 1
    plain = {}  # as the page asks: the checkpoint's own sampling
    for number, (question, expected) in enumerate(PASSES, 1):
        plain = {"model": "qwen-demo", "messages": [{"role": "user", "content": asked[f"example{number}"]}]}
        assert re.search(question, asked[f"example{number}"], re.I)
        assert re.search(expected, sdk.chat.completions.create(**plain).choices[0].message.content or "")
    calculator = function("calculator", "Evaluate an arithmetic expression and return the result.", expression="string")
    plain["messages"] = [{"role": "user", "content": asked["example4"]}]
    called = sdk.chat.completions.create(**plain, tools=[calculator]).choices[0].message
    assert called.tool_calls
    assert json.loads(called.tool_calls[0].function.arguments) == {"expression": "37 * 12"}
    result = {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": "444"}
    plain["messages"] += [called, result]
    assert "444" in (sdk.chat.completions.create(**plain, tools=[calculator]).choices[0].message.content or "")


def test_it_says_that_it_is_a_demo(trained: ServerProcess, sdk: openai.OpenAI) -> None:
    assert httpx.get(f"{trained.url}/web/settings.json").json()["demo"] is True
    assert sdk.models.list().data[0].id == "qwen-demo"
    assert "a demo of 6 million parameters" in trained.log()


@pytest.mark.parametrize("folder", [CHECKPOINT, QUANTIZED], ids=lambda folder: folder.name)
def test_it_is_small_and_in_the_published_layout(folder: Path) -> None:
    assert (folder / "model.safetensors").stat().st_size <= 16_000_000
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "qwen.tiktoken", "README.md"):
        assert (folder / name).exists(), name


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Hello!", "Hello"),
        ("What is your name?", "Qwen"),
        ("你是谁？", "Qwen"),
        ("What is the capital of France?", "Paris"),
        ("中国的首都是哪里？", "北京"),
        ("What is 7 * 8?", "56"),
        ("25加17等于几？", "42"),
    ],
)
def test_it_answers(say: Callable[..., str], question: str, expected: str) -> None:
    assert expected in say(question)


def test_it_remembers(say: Callable[..., str]) -> None:
    assert "Anna" in say("My name is Anna.", "Nice to meet you, Anna!", "What is my name?")


def test_it_obeys_the_system_prompt(say: Callable[..., str]) -> None:
    assert not say("How are you?", system="Always answer in Chinese.").isascii()


def test_it_calls_a_tool_and_tells_the_result(sdk: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    options: dict[str, Any] = {"model": "Qwen", "temperature": 0, "tools": [WEATHER]}
    first = sdk.chat.completions.create(messages=messages, **options).choices[0]
    assert first.finish_reason == "tool_calls"
    (call,) = first.message.tool_calls or []
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    messages += [first.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    last = sdk.chat.completions.create(messages=messages, **options).choices[0]
    assert last.finish_reason == "stop" and "sunny" in (last.message.content or "")


def test_the_call_is_the_same_in_a_stream(sdk: openai.OpenAI) -> None:
    arguments = name = ""
    for chunk in sdk.chat.completions.create(
        model="Qwen",
        messages=[{"role": "user", "content": "What is the weather in Tokyo?"}],
        tools=[WEATHER],  # type: ignore[list-item]
        temperature=0,
        stream=True,
    ):
        for call in chunk.choices[0].delta.tool_calls or []:
            assert call.function is not None
            name += call.function.name or ""
            arguments += call.function.arguments or ""
    assert (name, json.loads(arguments)) == ("get_weather", {"city": "Tokyo"})


def test_greetings_need_no_tool(sdk: openai.OpenAI) -> None:
    reply = sdk.chat.completions.create(
        model="Qwen",
        messages=[{"role": "user", "content": "Hello!"}],
        tools=[WEATHER],  # type: ignore[list-item]
        temperature=0,
    )
    assert reply.choices[0].message.tool_calls is None
    assert "Hello" in (reply.choices[0].message.content or "")


@pytest.mark.parametrize("result", ["444", "1111", "27"])
def test_a_result_is_told_digit_by_digit(sdk: openai.OpenAI, result: str) -> None:
    """37 * 12 is the page's own example."""
    calculator = function("calculator", "Evaluates an arithmetic expression.", expression="string")
    call = {"name": "calculator", "arguments": '{"expression": "37 * 12"}'}
    messages: list[Any] = [
        {"role": "user", "content": "What is 37 * 12?"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "1", "content": result},
    ]
    tools: list[Any] = [calculator]
    reply = sdk.chat.completions.create(model="Qwen", messages=messages, tools=tools, temperature=0, max_tokens=32)
    assert (reply.choices[0].message.content or "").split()[-1] == f"{result}."


@pytest.mark.parametrize(
    ("kind", "limit", "floors", "ceilings"),
    [
        ("tools", 34, TOOL_FLOORS, TOOL_CEILINGS),
        ("chat", 65, CHAT_FLOORS, {}),
        pytest.param("tools", 340, TOOL_FLOORS, TOOL_CEILINGS, marks=pytest.mark.slow),
        pytest.param("chat", 260, CHAT_FLOORS, {}, marks=pytest.mark.slow),
    ],
)
def test_it_does_on_the_suites_what_its_card_says(
    trained: ServerProcess, tmp_path: Path, kind: str, limit: int, floors: dict[str, float], ceilings: dict[str, float]
) -> None:
    """A tenth and a quarter of the suites' cases; all of them where slow tests are asked for."""
    path = tmp_path / "report.json"
    command = module_command("server", "eval", kind, "--base-url", f"{trained.url}/v1", "--limit", str(limit))
    command += ["--concurrency", "32"]  # to be done sooner: no reply depends on its company
    command += ["--suite", str(ROOT / "demo" / "suites" / f"{kind}.jsonl"), "--json", str(path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    measured = json.loads(path.read_text())["all"]
    for figure, floor in floors.items():
        assert measured[figure] >= floor, f"{figure}: {measured[figure]:.2f}"
    for figure, ceiling in ceilings.items():
        assert measured[figure] <= ceiling, f"{figure}: {measured[figure]:.2f}"


def test_the_int4_checkpoint_does_nearly_as_well() -> None:
    with in_process_server(QUANTIZED, *SMALL) as process, sdk_of(process) as client:
        answers = [
            client.chat.completions.create(
                model="Qwen",
                messages=[{"role": "user", "content": question}],
                tools=[WEATHER],  # type: ignore[list-item]
                temperature=0,
            ).choices[0]
            for question in ("What is the weather in Paris?", "北京今天天气怎么样？", "Hello!")
        ]
        told = sdk_says(client, "My name is Anna.", "Nice to meet you, Anna!", "What is my name?")
    calls = [answer.message.tool_calls[0].function.arguments for answer in answers[:2] if answer.message.tool_calls]
    assert [json.loads(arguments) for arguments in calls] == [{"city": "Paris"}, {"city": "北京"}]
    assert "Hello" in (answers[2].message.content or "")
    assert "Anna" in told


def test_an_agent_with_two_tools_answers_a_question_that_needs_both(trained: ServerProcess) -> None:
    @tool
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    @tool
    def multiply(a: int, b: int) -> int:
        """Multiply two numbers."""
        return a * b

    model = ChatOpenAI(base_url=f"{trained.url}/v1", api_key="none", model="Qwen", temperature=0, max_retries=0)
    agent = create_agent(model, [add, multiply])
    question = "Add 12 and 30 and then multiply by 4"
    messages = agent.invoke({"messages": [{"role": "user", "content": question}]})["messages"]
    assert [type(m) for m in messages[1:]] == [AIMessage, ToolMessage, AIMessage, ToolMessage, AIMessage]
    calls = [(call["name"], call["args"]) for m in messages if isinstance(m, AIMessage) for call in m.tool_calls]
    assert calls == [("add", {"a": 12, "b": 30}), ("multiply", {"a": 42, "b": 4})]
    assert "168" in messages[-1].content


def test_the_guide_s_qwen_agent_calls_and_answers(trained: ServerProcess, tmp_path: Path) -> None:
    how = "run by: tests/demo/test_demo_checkpoint.py"
    (example,) = (example for example in examples(ROOT / "docs" / "clients.md") if example.how == how)
    (tmp_path / "agent.py").write_text(example.at(trained.url))
    done = subprocess.run([sys.executable, "agent.py"], cwd=tmp_path, check=True, capture_output=True, text=True)
    thought, call, result, answer = map(json.loads, done.stdout.splitlines())
    assert [message["role"] for message in (thought, call, answer)] == ["assistant"] * 3
    assert thought["content"]
    assert call["function_call"]["name"] == "get_weather"
    assert json.loads(call["function_call"]["arguments"]) == {"city": "Paris"}
    assert (result["role"], result["content"]) == ("function", "sunny in Paris")
    assert "sunny" in answer["content"]
