"""Requests to begin with, shown in /docs. Each is a request this server answers."""

from __future__ import annotations

from typing import Any

from fastapi.openapi.models import Example

_QUESTION: dict[str, Any] = {"role": "user", "content": "What is the weather in Paris?"}
_WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "Current weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
        "required": ["city"],
    },
}
_TOOL: dict[str, Any] = {"type": "function", "function": _WEATHER}
_CALL: dict[str, Any] = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
}


def _example(summary: str, value: dict[str, Any]) -> Example:
    return {"summary": summary, "value": value}


CHAT: dict[str, Example] = {
    "simple": _example("A question", {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 64}),
    "stream": _example(
        "A stream, with its usage at the end",
        {
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}],
            "max_tokens": 64,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    ),
    "tools": _example("A tool the model may call", {"messages": [_QUESTION], "tools": [_TOOL], "max_tokens": 128}),
    "tool result": _example(
        "The result of a call",
        {
            "messages": [
                _QUESTION,
                {"role": "assistant", "content": None, "tool_calls": [_CALL]},
                {"role": "tool", "tool_call_id": "call_1", "content": "18 degrees, sunny"},
            ],
            "tools": [_TOOL],
            "max_tokens": 128,
        },
    ),
    "functions": _example(
        "A function, in the older form",
        {"messages": [_QUESTION], "functions": [_WEATHER], "function_call": {"name": "get_weather"}, "max_tokens": 128},
    ),
    "json": _example(
        "An answer that fits a JSON schema",
        {
            "messages": [{"role": "user", "content": "Name a colour and how much you like it."}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": "opinion",
                    "schema": {
                        "type": "object",
                        "properties": {"colour": {"enum": ["red", "green", "blue"]}, "stars": {"enum": [1, 2, 3]}},
                        "required": ["colour", "stars"],
                        "additionalProperties": False,
                    },
                },
            },
            "max_tokens": 64,
        },
    ),
    "choice": _example(
        "One of some answers, with log-probabilities",
        {
            "messages": [{"role": "user", "content": "Is water wet?"}],
            "structured_outputs": {"choice": ["yes", "no"]},
            "logprobs": True,
            "top_logprobs": 2,
            "max_tokens": 8,
        },
    ),
}

COMPLETIONS: dict[str, Example] = {
    "simple": _example("A text to continue", {"prompt": "Once upon a time", "max_tokens": 32, "temperature": 0}),
    "scores": _example(
        "Log-probabilities of a text, as evaluation harnesses ask for them",
        {"prompt": "The sky is blue", "echo": True, "logprobs": 1, "max_tokens": 0},
    ),
    "several": _example(
        "Several prompts, several choices each", {"prompt": ["One, two,", "A, b,"], "n": 2, "seed": 1, "max_tokens": 8}
    ),
}

TOKENIZE: dict[str, Example] = {
    "prompt": _example("A text", {"prompt": "Hello!", "return_token_strs": True}),
    "messages": _example("A conversation with a tool", {"messages": [_QUESTION], "tools": [_TOOL]}),
}

MESSAGES: dict[str, Example] = {
    "simple": _example(
        "A question",
        {"max_tokens": 64, "system": "Be brief.", "messages": [{"role": "user", "content": "Hello!"}]},
    ),
    "stream": _example(
        "A stream", {"max_tokens": 64, "messages": [{"role": "user", "content": "Hello!"}], "stream": True}
    ),
    "tool result": _example(
        "The result of a call",
        {
            "max_tokens": 128,
            "messages": [
                _QUESTION,
                {
                    "role": "assistant",
                    "content": [
                        {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}}
                    ],
                },
                {
                    "role": "user",
                    "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "18 degrees, sunny"}],
                },
            ],
            "tools": [
                {
                    "name": "get_weather",
                    "description": _WEATHER["description"],
                    "input_schema": _WEATHER["parameters"],
                }
            ],
        },
    ),
}

COUNT_TOKENS: dict[str, Example] = {"simple": _example("A question", {"messages": [_QUESTION]})}

BATCHES: dict[str, Example] = {
    "chats": _example(
        "Chats, within a day",
        {"input_file_id": "file-abc123", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
    )
}

DETOKENIZE: dict[str, Example] = {"simple": _example("Ids of a text", {"tokens": [72, 105, 33]})}

_RESPONSES_TOOL: dict[str, Any] = {"type": "function", **_WEATHER}
RESPONSES: dict[str, Example] = {
    "simple": _example("A question", {"input": "Hello!", "max_output_tokens": 64}),
    "stream": _example(
        "A stream of events",
        {"instructions": "Be brief.", "input": "Hello!", "max_output_tokens": 64, "stream": True},
    ),
    "tools": _example(
        "A tool the model may call",
        {"input": [_QUESTION], "tools": [_RESPONSES_TOOL], "max_output_tokens": 128},
    ),
    "tool result": _example(
        "The result of a call",
        {
            "input": [
                _QUESTION,
                {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": '{"city": "Paris"}'},
                {"type": "function_call_output", "call_id": "call_1", "output": "18 degrees, sunny"},
            ],
            "tools": [_RESPONSES_TOOL],
            "max_output_tokens": 128,
        },
    ),
    "json": _example(
        "An answer that fits a JSON schema",
        {
            "input": "Name a city.",
            "text": {
                "format": {
                    "type": "json_schema",
                    "name": "city",
                    "schema": {
                        "type": "object",
                        "properties": {"city": {"type": "string"}},
                        "required": ["city"],
                        "additionalProperties": False,
                    },
                }
            },
            "max_output_tokens": 64,
        },
    ),
    "background": _example(
        "In the background; poll GET /v1/responses/{id}",
        {"input": "Tell me a story.", "background": True, "max_output_tokens": 64},
    ),
}
