"""The openai package's responses, synchronous and asynchronous, and LangChain on them, against the real server."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from tests.support.server_process import ServerProcess

# The SDK's types want literals everywhere; these tests send plain dicts on purpose.
# mypy: disable-error-code="call-overload,arg-type,union-attr"

TOOL: Any = {
    "type": "function",
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
NAMED: Any = {"type": "function", "name": "get_weather"}
SHORT: Any = {"model": "Qwen", "temperature": 0, "max_output_tokens": 8}


class Person(BaseModel):
    name: Literal["Ann", "Bob"]
    ages: list[Literal[1, 2]]


def test_a_call_and_its_result(client: openai.OpenAI) -> None:
    options: Any = {**SHORT, "max_output_tokens": 60, "tools": [TOOL]}
    asked = client.responses.create(input="Weather?", tool_choice=NAMED, **options)
    (call,) = (item for item in asked.output if item.type == "function_call")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    by_id = client.responses.create(input=[result], previous_response_id=asked.id, **options)
    sent: Any = [{"role": "user", "content": "Weather?"}, *asked.output, result]
    assert client.responses.create(input=sent, **options).output_text == by_id.output_text
    with client.responses.stream(input="Weather?", tool_choice=NAMED, **options) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[-1] == "response.completed" and "response.function_call_arguments.done" in kinds
    assert final.output[-1].parsed_arguments["city"] in ("Paris", "Rome")


def test_parse(client: openai.OpenAI) -> None:
    options = {**SHORT, "max_output_tokens": 120}
    parsed = client.responses.parse(input="Who?", text_format=Person, **options)
    assert parsed.output_parsed is not None and parsed.output_parsed.name in ("Ann", "Bob")
    with client.responses.stream(input="Who?", text_format=Person, **options) as stream:
        stream.until_done()
        assert stream.get_final_response().output_parsed == parsed.output_parsed


def test_what_is_kept(client: openai.OpenAI) -> None:
    made = client.responses.create(input="hi", metadata={"a": "b"}, **SHORT)
    found = client.responses.retrieve(made.id)
    assert found == made and found.metadata == {"a": "b"}
    (item,) = client.responses.input_items.list(made.id)
    assert item.content[0].text == "hi"
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError, match="'web_search' is not supported"):
        client.responses.create(input="hi", tools=[{"type": "web_search"}], **SHORT)


async def test_a_stream_in_the_background_is_taken_up_again(async_client: openai.AsyncOpenAI) -> None:
    stream = await async_client.responses.create(input="hi", background=True, stream=True, **SHORT)
    first = [await anext(aiter(stream)) for _ in range(3)]
    await stream.close()
    id = first[0].response.id
    rest = await async_client.responses.retrieve(id, stream=True, starting_after=first[-1].sequence_number)
    events = [*first, *[event async for event in rest]]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    found = await async_client.responses.retrieve(id)
    assert found.status in ("completed", "incomplete") and found.output_text == text
    assert (await async_client.responses.cancel(id)).status == found.status


@pytest.mark.filterwarnings("ignore")
def test_langchain_on_responses(server: ServerProcess) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from langchain_core.messages import ToolMessage
        from langchain_openai import ChatOpenAI

    model = ChatOpenAI(
        base_url=f"{server.url}/v1", api_key="none", model="Qwen", temperature=0, max_tokens=40,
        use_responses_api=True, max_retries=0,
    )  # fmt: skip
    whole = model.invoke("hi")
    assert whole.text and whole.usage_metadata["output_tokens"] <= 40
    assert "".join(chunk.text for chunk in model.stream("hi")) == whole.text
    answer = model.bind_tools([TOOL], tool_choice="get_weather").invoke("Weather?")
    (call,) = answer.tool_calls
    assert call["args"]["city"] in ("Paris", "Rome")
    result = ToolMessage("sunny", tool_call_id=call["id"])
    assert model.bind_tools([TOOL]).invoke([("user", "Weather?"), answer, result]).text is not None
    assert isinstance(model.with_structured_output(Person).invoke("Who?"), Person)
    linked = model.invoke("And?", previous_response_id=whole.response_metadata["id"])
    assert linked.response_metadata["id"] != whole.response_metadata["id"]
