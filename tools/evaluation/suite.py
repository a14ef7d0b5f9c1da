"""Reads suites: JSONL files with one case per line (docs/evaluation.md). Unknown keys are errors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model.contract.errors import ConfigError
from tools.evaluation.plugin import as_case, is_plugin_line

Match = Literal["exact", "contains", "number"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ExpectedCall(_Strict):
    """The expected call."""

    name: str
    arguments: dict[str, Any]


class ToolCase(_Strict):
    """A conversation whose next reply must be the expected call, or must not be a call if that is None.

    Attributes:
        is_rendered: the prompt already contains the tools as text, so they are not sent, and the reply is text too.
    """

    id: str
    category: str
    language: str
    messages: list[dict[str, Any]] = Field(min_length=1)
    tools: list[dict[str, Any]] = Field(min_length=1)
    expected: ExpectedCall | None
    is_rendered: bool = False

    @model_validator(mode="after")
    def _can_be_asked(self) -> ToolCase:
        """Checks what both modes need: tools with names, and results that belong to calls."""
        names = [function.get("name") for tool in self.tools if isinstance(function := tool.get("function"), dict)]
        if len(names) != len(self.tools) or not all(isinstance(name, str) for name in names):
            raise ValueError("each of the tools needs a function with a name")
        if self.expected is not None and self.expected.name not in names:
            raise ValueError(f"expected calls {self.expected.name!r}, which is none of the tools")
        made: set[Any] = set()
        for message in self.messages:
            made |= {call.get("id") for call in message.get("tool_calls") or () if "name" in call.get("function", {})}
            if message.get("role") == "tool" and message.get("tool_call_id") not in made:
                raise ValueError("a tool message needs the tool_call_id of an earlier call")
        return self


class ChatCase(_Strict):
    """A conversation whose next reply is known.

    Attributes:
        match: how the reply must match `expected`: "exact" (the same text), "contains" (the text occurs as whole words,
            in any case) or "number" (the last number of the reply).
    """

    id: str
    category: str
    language: str
    messages: list[dict[str, Any]] = Field(min_length=1)
    expected: str = Field(min_length=1)
    match: Match = "exact"

    @model_validator(mode="after")
    def _check_number(self) -> ChatCase:
        if self.match == "number" and not _NUMBER.fullmatch(_plain(self.expected)):
            raise ValueError(f"match is number, and expected is none: {self.expected!r}")
        return self


CaseT = TypeVar("CaseT", ToolCase, ChatCase)


def load_suite(path: Path, kind: type[CaseT]) -> list[CaseT]:
    """Reads a suite.

    Args:
        path: a JSONL file in our format or that of the published plugin benchmark; empty lines are skipped.
        kind: the type of its cases.

    Raises:
        ConfigError: the file cannot be read, has no cases, two cases with one id, or a line that is not a case.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot read the suite ({error})") from error
    cases: list[CaseT] = []
    ids: set[str] = set()
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            if kind is ToolCase and is_plugin_line(value):
                value = as_case(value, number)
            case = kind.model_validate(value)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "the line"
            reason = str(first["msg"]).removeprefix("Value error, ")
            raise ConfigError(f"{path}, line {number}: {place}: {reason[:1].lower()}{reason[1:]}") from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}, line {number}: not JSON ({error})") from error
        if case.id in ids:
            raise ConfigError(f"{path}, line {number}: there are two cases with id {case.id!r}")
        ids.add(case.id)
        cases.append(case)
    if not cases:
        raise ConfigError(f"{path}: holds no case")
    return cases


_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def _plain(number: str) -> str:
    """Removes the commas between thousands."""
    return number.replace(",", "").strip()


def matches(reply: str, expected: str, match: Match) -> bool:
    """Whether a reply is right. Whitespace is normalised first."""
    reply, expected = " ".join(reply.split()), " ".join(expected.split())
    if match == "exact":
        return reply == expected
    if match == "contains":
        # Not inside a longer word or number: 14 does not contain 4. Chinese has no such boundaries.
        pattern = rf"(?<![A-Za-z0-9]){re.escape(expected)}(?![A-Za-z0-9])"
        return re.search(pattern, reply, re.IGNORECASE) is not None
    numbers = _NUMBER.findall(_plain(reply))
    return bool(numbers) and float(numbers[-1]) == float(_plain(expected))
