"""The published plugin benchmark: JSONL lines with a complete ReAct prompt and the expected reply.

Its files (exam_plugin_v..._react_positive.jsonl, ..._negative.jsonl) are read as a tools suite. The prompt already
contains the tools, so it is sent as one user message, and the reply is parsed as by the published script
(eval/evaluate_plugin.py), except that arguments must be JSON, not JSON5.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from tools.evaluation.asking import Answer

# The model would make up a result after this. The published script ignores that text too.
STOP = "Observation:"

_NAMES = re.compile(r"should be one of \[([^\]\n]*)\]")
_STEP = re.compile(
    r"(?:^|\n)Action:(?P<name>[^\n]*)(?:\n\s*Action Input:(?P<arguments>.*?))?(?=\nObservation:|\Z)", re.S
)
_CHINESE = re.compile(r"[\u4e00-\u9fff]")


def is_plugin_line(value: Any) -> bool:
    """Whether a line of a suite has the benchmark's format."""
    return isinstance(value, dict) and isinstance(value.get("prompt"), str) and "messages" not in value


def as_case(line: dict[str, Any], number: int) -> dict[str, Any]:
    """Converts a line into the fields of a `ToolCase`.

    Args:
        line: has `prompt`, and `response` if a call is expected.
        number: the line's number, from 1.
    """
    prompt = line["prompt"]
    name, arguments = _call(str(line.get("response") or ""))
    expected = None if name is None else {"name": name, "arguments": _as_object(arguments)}
    named = [text.strip() for found in _NAMES.findall(prompt) for text in found.split(",") if text.strip()]
    names = list(dict.fromkeys([*named, *([name] if name else [])])) or ["?"]
    return {
        "id": str(line.get("id", number)),
        "category": "no tool fits" if expected is None else "a tool fits",
        "language": "zh" if _CHINESE.search(prompt.rpartition("Question:")[2]) else "en",
        "messages": [{"role": "user", "content": prompt}],
        "tools": [{"type": "function", "function": {"name": name}} for name in names],
        "expected": expected,
        "is_rendered": True,
    }


def read_reply(answer: Answer) -> Answer:
    """Parses the call in the text of a reply."""
    name, arguments = _call(answer.text)
    if name is None:
        return answer
    return replace(answer, tool=name, arguments=arguments, num_calls=1)


def _call(text: str) -> tuple[str | None, str]:
    step = _STEP.search(text)
    if step is None:
        return None, ""
    return step["name"].strip(), (step["arguments"] or "").strip()


def _as_object(arguments: str) -> dict[str, Any]:
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
