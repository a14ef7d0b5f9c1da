"""LangChain's ChatOpenAI and agents against the real server.

The random checkpoint says nothing sensible, so tests steer it by what a client may ask for: forced tools, schemas,
choices. Everything between, the loop of calls and results above all, is LangChain's and the server's own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from tests.support.server_process import ServerProcess

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of their own imports
    from langchain.agents import create_agent
    from langchain.agents.middleware import wrap_model_call
    from langchain_classic.agents import AgentExecutor, create_react_agent
    from langchain_core.messages import AIMessage, ToolMessage
    from langchain_core.prompts import PromptTemplate
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

pytestmark = pytest.mark.filterwarnings("ignore")  # LangChain's deprecations are not ours to mend


@tool
def weather(city: Literal["Paris", "Rome"]) -> str:
    """Weather of a city."""
    return f"sunny in {city}"


@tool
def clock() -> str:
    """The time of day."""
    return "12:00"


class Answer(BaseModel):
    """An answer."""

    is_sure: bool
    color: Literal["red", "green"]


@pytest.fixture
def chat(server: ServerProcess) -> Callable[..., ChatOpenAI]:
    def make(**options: Any) -> ChatOpenAI:
        settings = {"model": "Qwen", "max_tokens": 96, "temperature": 0, "max_retries": 0, "timeout": 60, **options}
        return ChatOpenAI(base_url=f"{server.url}/v1", api_key="none", **settings)

    return make


def test_invoke_and_stream_agree(chat: Callable[..., ChatOpenAI]) -> None:
    model = chat(max_tokens=12)
    whole = model.invoke("hi")
    assert isinstance(whole.content, str) and whole.content
    usage = whole.usage_metadata
    assert usage is not None and usage["output_tokens"] <= 12
    assert "".join(str(chunk.content) for chunk in model.stream("hi")) == whole.content


async def test_ainvoke(chat: Callable[..., ChatOpenAI]) -> None:
    assert (await chat(max_tokens=4).ainvoke("hi")).content is not None


def test_bind_tools(chat: Callable[..., ChatOpenAI]) -> None:
    model = chat().bind_tools([weather, clock], tool_choice="weather")
    (call,) = model.invoke("?").tool_calls
    assert call["name"] == "weather" and call["args"]["city"] in ("Paris", "Rome")
    streamed = None
    for chunk in model.stream("?"):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed is not None
    (again,) = streamed.tool_calls
    assert (again["name"], again["args"]) == (call["name"], call["args"])


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_with_structured_output(chat: Callable[..., ChatOpenAI], method: str) -> None:
    answer = chat().with_structured_output(Answer, method=method).invoke("?")
    assert isinstance(answer, Answer)


def test_an_agent_runs_a_loop_of_two_tools(chat: Callable[..., ChatOpenAI]) -> None:
    steps = iter(["weather", "clock", None])

    @wrap_model_call
    def steer(request: Any, handler: Any) -> Any:
        name = next(steps)
        if name is not None:
            return handler(request.override(tool_choice={"type": "function", "function": {"name": name}}))
        choice = {"extra_body": {"structured_outputs": {"choice": ["sunny at noon"]}}}
        return handler(request.override(tools=[], model_settings=choice))

    agent = create_agent(chat(), [weather, clock], middleware=[steer])
    messages = agent.invoke({"messages": [{"role": "user", "content": "Weather and time?"}]})["messages"]
    assert [type(message) for message in messages[1:]] == [AIMessage, ToolMessage, AIMessage, ToolMessage, AIMessage]
    assert messages[2].content in ("sunny in Paris", "sunny in Rome")
    assert messages[4].content == "12:00"
    assert messages[5].content == "sunny at noon"


def test_a_classic_text_agent_stops_at_the_observation(chat: Callable[..., ChatOpenAI]) -> None:
    prompt = PromptTemplate.from_template(
        "Tools:\n{tools}\nNames: {tool_names}\nQuestion: {input}\nThought:{agent_scratchpad}"
    )
    tools = [_clock_of_text()]

    def run(reply: str) -> Any:
        model = chat(extra_body={"structured_outputs": {"choice": [reply]}})
        agent = create_react_agent(model, tools, prompt, stop_sequence=["\nObservation"])
        executor = AgentExecutor(agent=agent, tools=tools, max_iterations=1, return_intermediate_steps=True)
        return executor.invoke({"input": "What time is it?"})

    # The stop word ends the reply in the middle of the observation that the model makes up.
    ((action, observation),) = run(" I look.\nAction: clock\nAction Input: now\nObservation: made up")[
        "intermediate_steps"
    ]
    assert (action.tool, action.tool_input, observation) == ("clock", "now", "12:00")
    assert "made up" not in action.log and "Observation" not in action.log
    assert run(" I know.\nFinal Answer: noon")["output"] == "noon"


def _clock_of_text() -> Any:
    @tool("clock")
    def tell(now: str) -> str:
        """The time of day."""
        return "12:00"

    return tell
